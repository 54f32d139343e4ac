"""Base models from the hub or a folder: how they are loaded, which layers are adapted, PEFT's folders."""

from fedsb.models.head import head_parameters as head_parameters
from fedsb.models.load import load_base as load_base
from fedsb.models.load import load_tokenizer as load_tokenizer
from fedsb.models.peft_folder import read_adapter as read_adapter
from fedsb.models.peft_folder import write_adapter as write_adapter
from fedsb.models.targets import chosen_targets as chosen_targets
