"""What a model's answers are worth: generation, answers found and compared, scores with their intervals.

rows -> prompts (the task's own template) -> outputs (`generate`, kept by `outputs`)
     -> answers (`gsm8k`, `mathematics`, `choices`) -> scores (`intervals`, `texts`)
"""
