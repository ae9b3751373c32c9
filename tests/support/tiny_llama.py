"""A random LLaMA of a few thousand weights, and a tokenizer of single characters."""

import string

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
NUM_LAYERS, D_IN, VOCAB_SIZE = 3, 16, 100


def save_tiny_llama(folder, **options):
    """Saves model and tokenizer as transformers does; every call gives the same weights.

    `options` are of its `LlamaConfig`, in the place of the usual ones.
    """
    config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": D_IN,
        "intermediate_size": 24,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**config | options))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_tokenizer():
    """One token a character, with a begin-of-sequence token in front, as LLaMA's have."""
    characters = string.digits + string.ascii_letters + " .,?!+-*/=<>|{}$%"
    vocabulary = {token: i for i, token in enumerate([BOS, EOS, UNKNOWN, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )
