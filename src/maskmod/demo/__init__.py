"""``python -m maskmod demo``: a small language model trained on packed text, then generating on three backends.

Read it in this order: `text` (the input), `model`, `attend` (where masks and caches meet the model), `train`,
`generate` (the two compiled functions), `measure` (what is counted), `report`; `run` below strings them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from maskmod import Mask, causal, document, draw, remap
from maskmod.demo.attend import KERNELS
from maskmod.demo.generate import Generator, generate_uncompiled, over_slots
from maskmod.demo.measure import measure
from maskmod.demo.model import Config
from maskmod.demo.progress import progress
from maskmod.demo.report import Report, beside
from maskmod.demo.text import PROMPTS, documents, left_padded, packed, text_from
from maskmod.demo.train import train

__all__ = ["run"]

SEED = 0
THREADS = 1  # tensors this small gain little from a second, and where cores are busy threads wait for each other
ROW_LEN = 512  # tokens of a training row: a few documents each
STEPS = 300  # about half a minute, after which most words are words
PARTS = 6  # of the training run, each reported by its mean loss: a batch's own is too noisy to compare
PROMPT_LEN = 64  # columns of the padded prompts
NEW_TOKENS = 64
PICTURE = 16  # rows and columns of a drawing: two fit side by side on a terminal


def run(say: Callable[[str], None]) -> Report:
    """Train, generate on every backend, compare; ``say`` gets each line of text as it becomes known."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return _run(say)
    finally:
        torch.set_num_threads(threads)


def _run(say: Callable[[str], None]) -> Report:
    start = time.perf_counter()
    config, texts = Config(), documents()
    rows = packed(texts, ROW_LEN, seed=SEED)
    say(f"Text: {len(texts)} paragraphs of Python's language reference, in {len(rows.tokens)} rows of {ROW_LEN} bytes.")

    losses: list[float] = []
    say(f"\nTraining: {STEPS} steps under causal() & document(ids), by SDPA; loss in nats a byte.")
    with progress("training", STEPS) as advance:

        def report_step(loss: float) -> None:
            losses.append(loss)
            advance(f"loss {loss:.2f}")
            if len(losses) % (STEPS // PARTS) == 0:
                say(f"  step {len(losses):>4}   loss {_mean(losses[-STEPS // PARTS :]):.3f}")

        model = train(config, rows, steps=STEPS, seed=SEED, report=report_step)

    prompts, warm_up = left_padded(PROMPTS, PROMPT_LEN), left_padded(PROMPTS[::-1], PROMPT_LEN)
    max_len = PROMPT_LEN + NEW_TOKENS
    say(f"\nMasks: every {ROW_LEN // PICTURE} tokens of a training row, every {max_len // PICTURE} cache slots.\n")
    for line in beside(*_pictures(rows.document_ids, prompts.pads, max_len)):
        say(f"  {line}")

    say(f"\nGeneration: {len(PROMPTS)} prompts, padded left to {PROMPT_LEN} bytes; {NEW_TOKENS} new bytes each.\n")
    reference = generate_uncompiled(model, prompts, causal(), NEW_TOKENS)
    samples = [prompt + text_from(new) for prompt, new in zip(PROMPTS, reference.tokens, strict=True)]
    for sample in samples:
        say(f"  {sample}")

    measured = []
    with progress("compiling, generating", len(KERNELS)) as advance:
        for backend in KERNELS:
            generator = Generator(model, backend, causal(), len(PROMPTS), PROMPT_LEN, max_len)
            measured.append(measure(generator, warm_up, prompts, reference.tokens))
            advance(backend)

    report = Report(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        documents=rows.documents,
        bytes_of_text=rows.tokens.numel(),
        parameters=sum(weight.numel() for weight in model.parameters()),
        losses=[_mean(losses[i : i + STEPS // PARTS]) for i in range(0, STEPS, STEPS // PARTS)],
        prompts=len(PROMPTS),
        new_tokens=NEW_TOKENS,
        closest_decision=reference.closest,
        samples=samples,
        backends=measured,
        seconds=time.perf_counter() - start,
    )
    say("\nCompiled, static cache. Recompiles are those after warm-up; tokens are compared with an uncompiled run")
    say("without cache, padding or batch.\n")
    for line in report.table():
        say(f"  {line}")
    say(f"\n{'Passed' if report.ok else 'FAILED'}, in {report.seconds:.0f} seconds.")
    return report


def _pictures(document_ids: Tensor, pads: Tensor, max_len: int) -> tuple[list[str], list[str]]:
    """The mask of the first training row, and that of a middling prompt over the slots of its cache."""
    row = int(pads.median(0).indices)
    valid = torch.arange(max_len) >= pads[:, None]
    training = _sampled(causal() & document(document_ids[:1]), ROW_LEN, B=1, b=0)
    cache = _sampled(over_slots(causal(), -pads, valid), max_len, B=len(pads), b=row)
    return ["packed documents", *training], ["padding, prompt, then a row for each step", *cache]


def _sampled(mask: Mask, length: int, *, B: int, b: int) -> list[str]:
    """A drawing of PICTURE x PICTURE evenly spaced queries and keys."""
    spaced = torch.arange(0, length, length // PICTURE)
    return draw(remap(mask, q=spaced, kv=spaced), PICTURE, PICTURE, B=B, b=b).splitlines()[1:]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
