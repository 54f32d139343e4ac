"""Base models from the hub or a folder: how they are loaded, which layers are adapted, PEFT's folders."""

from fedsb.models.load import load_base as load_base
from fedsb.models.load import load_preprocessor as load_preprocessor
from fedsb.models.load import load_tokenizer as load_tokenizer
