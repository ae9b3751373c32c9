r"""How fast is extraction, how exact are batches, and does memory grow with the problems?

    python experiments/benchmark_extraction.py --problems=train.jsonl --num_problems=256
    python experiments/benchmark_extraction.py --measure=precision --problems=train.jsonl
    python experiments/benchmark_extraction.py --measure=memory

The first compares batches with a plain transformers loop, one problem at a time, that keeps
every layer and computes every logit, as published code does. Differences are those from the
same loop with the softmax and the mean embedding of a thought in float64, without which the
loop itself is not exact (`expected_embedding` says why). The second compares all three with
that loop in float64 throughout. To save time loops run on every `--loop_stride`th problem. The
third extracts all layers of 512 and of 4,096 short problems, two thoughts long, each in a
process of its own.

Cost: one to four minutes each on 2 CPU cores; with `--loop_stride=1` up to ten.
Expected: on a Zen 5 6 times the loop's problems per second in float32; a relative difference
of some 3e-4, of the plain loop 6e-3; peak memories within 10 % of each other.
"""

import dataclasses
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence

import command
import torch
from absl import flags

from sae_jax.extraction.continuous_thoughts import NUM_POSITIONS, thought_activations
from sae_jax.extraction.extract import BATCH_SIZE, batches, extract
from sae_jax.extraction.language_model import LanguageModel, cast_parameters
from sae_jax.extraction.models import PACKAGED, load_model
from sae_jax.extraction.problems import GENERATED, load_problems
from sae_jax.problems import Problem

_MEASURE = flags.DEFINE_enum(
    "measure", "speed", ["speed", "precision", "memory"], "What to measure."
)
_MODEL = flags.DEFINE_string("model", PACKAGED, "packaged (SmolLM2), hub id, folder or GGUF file.")
_PROBLEMS = flags.DEFINE_string(
    "problems", GENERATED, "JSONL or JSON file, openai/gsm8k, generated."
)
_NUM_PROBLEMS = flags.DEFINE_integer("num_problems", 256, "Problems to measure speed on.")
_LOOP_STRIDE = flags.DEFINE_integer("loop_stride", 4, "The loop takes every n-th problem.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", BATCH_SIZE, "Problems that are read at once, at most."
)

_TEMPLATE = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def work() -> None:
    """Prints the table that was asked for."""
    measures = {
        "speed": _measure_speed,
        "precision": _measure_precision,
        "memory": _measure_memory,
    }
    measures[_MEASURE.value]()


def _measure_speed() -> None:
    model, prompts = _model_and_prompts()
    layers = range(model.num_layers)
    strided = range(0, len(prompts), _LOOP_STRIDE.value)
    _in_batches(model, prompts[:4], layers)  # warm up
    expected = _in_a_loop(model, prompts, strided, thought_dtype=torch.float64)

    start = time.perf_counter()
    found = _in_a_loop(model, prompts, strided)
    loop_rate = len(strided) / (time.perf_counter() - start)
    print(f"| | problems/s | against the loop {_DIFFERENCE_TITLES}")
    print("|---|---|---|---|---|---|")
    print(
        f"| one at a time, torch.float32 ({len(strided)} problems) | {loop_rate:.2f} | 1 "
        f"{_difference_cells(found, expected)}"
    )
    for dtype in (torch.float32, torch.bfloat16):
        cast_parameters(model.causal_lm, dtype)
        start = time.perf_counter()
        found = _in_batches(model, prompts, layers)
        rate = len(prompts) / (time.perf_counter() - start)
        print(
            f"| batches of {_BATCH_SIZE.value}, {dtype} ({len(prompts)} problems) "
            f"| {rate:.2f} | {rate / loop_rate:.2f} "
            f"{_difference_cells(found[:, :, strided], expected)}"
        )


def _measure_precision() -> None:
    model, prompts = _model_and_prompts()
    strided = range(0, len(prompts), _LOOP_STRIDE.value)
    float32 = {
        "one at a time": _in_a_loop(model, prompts, strided),
        "one at a time, thoughts in float64": _in_a_loop(
            model, prompts, strided, thought_dtype=torch.float64
        ),
        f"batches of {_BATCH_SIZE.value}": _in_batches(model, prompts, range(model.num_layers))[
            :, :, strided
        ],
    }
    in_float64 = dataclasses.replace(model, causal_lm=model.causal_lm.double())
    expected = _in_a_loop(in_float64, prompts, strided, thought_dtype=torch.float64).float()
    print(f"| {len(strided)} problems {_DIFFERENCE_TITLES}")
    print("|---|---|---|---|")
    for name, found in float32.items():
        print(f"| {name} {_difference_cells(found, expected)}")


def _model_and_prompts() -> tuple[LanguageModel, list[list[int]]]:
    problems = load_problems(_PROBLEMS.value, _NUM_PROBLEMS.value)
    model = load_model(_MODEL.value, prompt_template=_TEMPLATE)
    return model, sorted((model.prompt_ids(p.question) for p in problems), key=len)


def _differences(found: torch.Tensor, expected: torch.Tensor, dim: int) -> torch.Tensor:
    """Relative differences along one axis of `[num_layers, num_positions, b, d_in]`."""
    others = [axis for axis in range(4) if axis != dim]
    difference = torch.linalg.vector_norm(found - expected, dim=others)
    return difference / torch.linalg.vector_norm(expected, dim=others)


_DIFFERENCE_TITLES = (
    "| relative difference | of the first, last thought | of the median, worst problem |"
)


def _difference_cells(found: torch.Tensor, expected: torch.Tensor) -> str:
    """The cells of a table under `_DIFFERENCE_TITLES`."""
    by_thought = _differences(found, expected, dim=1)
    by_problem = _differences(found, expected, dim=2)
    return (
        f"| {(found - expected).norm() / expected.norm():.1e} "
        f"| {by_thought[0]:.1e}, {by_thought[-1]:.1e} "
        f"| {by_problem.median():.1e}, {by_problem.max():.1e} |"
    )


def _in_batches(
    model: LanguageModel, prompts: Sequence[Sequence[int]], layers: Sequence[int]
) -> torch.Tensor:
    read = [
        thought_activations(model, [prompts[i] for i in batch], layers=layers)
        for batch in batches(range(len(prompts)), prompts, _BATCH_SIZE.value, model.device)
    ]
    return torch.cat(read, dim=2)


def _in_a_loop(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    strided: Sequence[int],
    thought_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    return torch.stack([_plain_loop(model, prompts[i], thought_dtype) for i in strided], dim=2)


@torch.inference_mode()
def _plain_loop(
    model: LanguageModel, prompt: Sequence[int], thought_dtype: torch.dtype
) -> torch.Tensor:
    """Soft thoughts about one problem: `[num_layers, num_positions, d_in]`.

    The softmax and the mean embedding alone are computed in `thought_dtype`.
    """
    (vocabulary,) = model.vocabulary_blocks(model.vocab_size)
    embedding = vocabulary.to(thought_dtype)
    output = model.causal_lm(torch.tensor([prompt]), use_cache=True, output_hidden_states=True)
    positions = []
    for _ in range(NUM_POSITIONS):
        thought = output.logits[:, -1:].softmax(dim=-1, dtype=thought_dtype) @ embedding
        output = model.causal_lm(
            inputs_embeds=thought.to(vocabulary),
            past_key_values=output.past_key_values,
            use_cache=True,
            output_hidden_states=True,
        )
        positions.append(torch.stack([state[0, -1] for state in output.hidden_states[1:]]))
    return torch.stack(positions, dim=1)


def _measure_memory() -> None:
    print("| problems | peak memory |\n|---|---|")
    for num_problems in (512, 4096):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(_peak_memory, (_MODEL.value, num_problems))
        print(f"| {num_problems} | {peak / 2**20:.0f} MiB |", flush=True)


def _peak_memory(source: str, num_problems: int) -> int:
    """Returns the largest memory in bytes of this process, which extracts some short problems."""
    model = load_model(source, prompt_template="{question}")
    problems = [Problem(str(i), f"{i}+{i % 7}=") for i in range(num_problems)]
    with tempfile.TemporaryDirectory() as output:
        extract(problems, model, output, layers=range(model.num_layers), positions=(0, 1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    command.start(work)
