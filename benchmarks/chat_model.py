"""A real chat model scored and sampled, against transformers: tokens a second, alone and beside other work.

    make model                                                # SmolLM2-135M-Instruct, build/models
    python benchmarks/chat_model.py                           # some 10 minutes on two quiet cores
    python benchmarks/chat_model.py --busy 1 --rounds 3       # beside one process that never rests
    python benchmarks/chat_model.py --folders small4bit       # folders in few bits beside it

score        4 windows of 512 tokens, the loss of every token.
stream       24 tokens after a prompt of 64, one text.
streams      24 tokens after prompts of 64, 16 texts at a time.

Arms are processes that stay alive; the parent lets them do one piece of work in turn, the order turned around in each
round. transformers is measured in float32 and in bfloat16, and the ratio is to the faster of the two, round by round.
Before anything is timed, Mickle's float32 losses and tokens are held to those of transformers.

Writes `benchmarks/results/chat_model.json`; with `--busy` its rows stand beside the others.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segments import Arm, Gate, alternate, beside

RESULT = Path(__file__).parent / "results" / "chat_model.json"
MODEL = Path(__file__).parents[1] / "build" / "models" / "SmolLM2-135M-Instruct"
WORKS = {"score": 4 * 512, "stream": 24, "streams": 16 * 24}  # tokens that count
PROMPT, NEW, WINDOW = 64, 24, 512


def tokens_of(folder: Path, rows: int, length: int) -> Any:
    """[rows, length] token ids of real text: this file's own, over and over."""
    import torch
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(Path(__file__).read_text()).ids
    places = torch.arange(rows * length).view(rows, length) + 7 * torch.arange(rows)[:, None]
    return torch.tensor(ids)[places % len(ids)]


# -- one arm, in its own process -------------------------------------------------------------------------------------


def run_arm(arm: str, work: str, folder: Path, answers: int, threads: int) -> None:
    """Do the work once for every step that the parent asks for; at the end say what came out and the memory."""
    if not arm.startswith("transformers"):  # as a user imports it: before torch, whose threads it tells how to wait
        import mickle  # noqa: F401
    import torch

    from mickle import machine

    torch.set_num_threads(threads)
    gate = Gate(answers)
    do = (of_transformers if arm.startswith("transformers") else of_mickle)(arm, work, folder)
    found = do()
    gate.left -= 1
    while not gate.step_done():
        found = do()
    gate.tell(found=found, peak=machine.peak_memory())


def of_mickle(arm: str, work: str, folder: Path) -> Callable[[], Any]:
    """The calls of ``mickle evaluate`` and ``mickle sample``: mean nats, or the tokens of the first text."""
    from functools import partial

    import torch

    from mickle.evaluation.loss import token_nats
    from mickle.models.folder import open_model
    from mickle.sampling.text import generate

    model = open_model(folder)
    if work == "score":
        ids = tokens_of(folder, 4, WINDOW + 1)

        @torch.no_grad()
        def score() -> float:
            return float(model(ids[:, :-1], head=partial(token_nats, labels=ids[:, 1:])).mean())

        return score
    prompts = tokens_of(folder, 1 if work == "stream" else 16, PROMPT).tolist()
    return lambda: generate(model, prompts, max_tokens=NEW, decode=str, temperature=0)[0].tokens


def of_transformers(arm: str, work: str, folder: Path) -> Callable[[], Any]:
    """The same by its own forward pass and `generate`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, arm.split("-")[1])).eval()
    if work == "score":
        ids = tokens_of(folder, 4, WINDOW + 1)

        @torch.no_grad()
        def score() -> float:
            logits = model(ids[:, :-1], use_cache=False).logits.float()
            return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))

        return score
    prompts = tokens_of(folder, 1 if work == "stream" else 16, PROMPT)
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def write() -> list[int]:
        found = model.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)
        return list(found[0, PROMPT:].tolist())

    return write


# -- the parent ------------------------------------------------------------------------------------------------------


def compare(work: str, folders: dict[str, Path], rounds: int, threads: int, busy: int) -> dict[str, Any]:
    """All arms at one kind of work."""
    with beside(busy):
        arms = {name: Arm(__file__, name, work, "float32", folder, threads) for name, folder in folders.items()}
        segments, ends = alternate(arms, 1, rounds)
    peers = [name for name in folders if name.startswith("transformers")]
    _refuse_other_work(work, ends["mickle"]["found"], ends[peers[0]]["found"])
    walls = {name: [segment["wall"] for segment in found] for name, found in segments.items()}
    best = [min(pair) for pair in zip(*(walls[peer] for peer in peers))]
    ratios = {name: sorted(peer / own for peer, own in zip(best, walls[name])) for name in folders if name not in peers}
    return {
        "work": work,
        "busy": busy,
        "threads": threads,
        "rounds": rounds,
        "tokens_per_second": {name: WORKS[work] / statistics.median(found) for name, found in walls.items()},
        "ratios": {name: {"low": found[0], "median": statistics.median(found), "high": found[-1]}
                   for name, found in ratios.items()},
        "peak_bytes": {name: said["peak"] for name, said in ends.items()},
    }  # fmt: skip


def _refuse_other_work(work: str, ours: Any, theirs: Any) -> None:
    same = abs(ours - theirs) < 1e-3 if work == "score" else ours == theirs
    if not same:
        raise SystemExit(f"the arms did not do the same work: {work} gave {ours} and {theirs}")


def main() -> None:
    """Run every asked work, print the results, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--folders", type=Path, nargs="*", default=[], help="of the same model in few bits")
    parser.add_argument(
        "--peers", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"],
        help="precisions of transformers; where a processor has no bfloat16 the second takes minutes",
    )  # fmt: skip
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--busy", type=int, default=0, help="processes that never rest, beside it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    for hidden in ("--arm", "--weights", "--answers", "--shapes", "--precisions"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.arm:
        run_arm(chosen.arm, chosen.shapes, Path(chosen.weights), int(chosen.answers), chosen.threads)
        return
    from importlib.metadata import version

    from provenance import provenance

    from mickle.storage import write_json

    peers = [f"transformers-{precision}" for precision in chosen.peers]
    folders = dict.fromkeys([*peers, "mickle"], chosen.model) | {path.name: path for path in chosen.folders}
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    came = {**provenance(__file__), "versions": {name: version(name) for name in ("torch", "transformers")}}
    for work in chosen.works:
        row = {**compare(work, folders, chosen.rounds, chosen.threads, chosen.busy), "commit": came["commit"]}
        print(f"{work}, {chosen.busy} busy beside:")
        for name, rate in row["tokens_per_second"].items():
            ratio = row["ratios"].get(name)
            said = ", {median:.2f} times ({low:.2f} to {high:.2f}; target 1.2)".format(**ratio) if ratio else ""
            print(f"  {name}: {rate:,.1f} tokens/s{said}", flush=True)
        kept = [old for old in kept if (old["work"], old["busy"]) != (work, chosen.busy)] + [row]
        write_json(RESULT, {**came, "rows": kept})


if __name__ == "__main__":
    main()
