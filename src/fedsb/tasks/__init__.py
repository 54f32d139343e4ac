"""Task families: what the rows mean, what is trained and how it is scored.

`classification` (one or two texts to a class or a number) and `causal_lm` (a prompt to a response) each
return a `Task`, a frozen record of functions.
"""

from fedsb.tasks.causal_lm import causal_lm as causal_lm
from fedsb.tasks.classification import classification as classification
from fedsb.tasks.classification import label_set as label_set
from fedsb.tasks.generate import generate_texts as generate_texts
from fedsb.tasks.task import Batch as Batch
from fedsb.tasks.task import Example as Example
from fedsb.tasks.task import Row as Row
from fedsb.tasks.task import Task as Task
