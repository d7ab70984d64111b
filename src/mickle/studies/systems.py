"""The 23 results of spring 2023 that Mickle is made of: paper, arXiv id, claim. A system is built when its
page exists.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """One paper, and what it claims, in one line."""

    label: str
    arxiv: str
    claim: str
    but: str = ""  # what a reader would hold against the verdict, in the front table beside it

    @property
    def name(self) -> str:
        """The name of its study page: the label's words in lower case."""
        return re.sub(r"\W+(and\W+)?", "_", self.label.lower())


SYSTEMS = (  # in the order of their numbers in Mickle, from 1 on
    System(
        "DPO",
        "2305.18290",
        "preferences train a policy by one logistic loss, at least as well as PPO, without a reward model",
    ),
    System(
        "LIMA",
        "2305.11206",
        "1,000 chosen conversations align better than 52,000 generated ones",
    ),
    System(
        "QLoRA",
        "2305.14314",
        "fine-tuning over 4-bit weights equals 16-bit fine-tuning; 65B fits in 48 GB",
        "the seeds see no difference under 24 % of that cost; 65B was not tried",
    ),
    System(
        "SpQR",
        "2306.03078",
        "3 to 4.7 bits a weight, a few outliers in 16, perplexity within 1 %",
        "a longer trained base lost 1.01 % in a pilot, and at 4.3 bits GPTQ is better (opposite)",
    ),
    System(
        "Token crisis",
        "2305.13230",
        "many epochs over few tokens degrade a model; dropout heals nearly half",
        "against stopping early, which costs nothing, no gain is shown",
    ),
    System(
        "DoReMi",
        "2305.10429",
        "domain weights from a small robust proxy: the baseline's accuracy in 2.6x fewer steps",
        "finding the weights takes half to two thirds of that compute again; no gain on natural domains alone",
    ),
    System(
        "RefinedWeb",
        "2306.01116",
        "filtered, strictly deduplicated web pages train better models than raw ones",
        "as good as curated is not shown, and fewer windows memorised than raw is not (opposite)",
    ),
    System(
        "False Promise",
        "2305.15717",
        "imitating a stronger model's answers teaches its style, not its knowledge",
    ),
    System(
        "NoPE",
        "2305.19466",
        "a decoder without position encoding extrapolates best to longer inputs",
        "arms stop when they have learned, after unequal steps, all at one learning rate that was not tuned",
    ),
    System(
        "Goat",
        "2305.14201",
        "hard arithmetic written as steps that tuning can learn lets 7B beat GPT-4 at it",
    ),
    System(
        "Gorilla",
        "2305.15334",
        "training with retrieved API documents gives correct calls that follow later changes",
    ),
    System(
        "Dynamic masking",
        "2305.15096",
        "a mask rate falling from 30 to 15 % needs 1.89x fewer steps than 15 %",
        "against the best constant rate it needs more (opposite)",
    ),
    System(
        "Blockwise",
        "2305.19370",
        "exact blockwise layers train on 2 to 4 times longer sequences than memory-efficient attention",
    ),
    System(
        "RWKV",
        "2305.13048",
        "a recurrent model trained in parallel matches transformers, in constant inference memory",
    ),
    System(
        "SEAHORSE",
        "2305.13194",
        "metrics learned from ratings predict human judgement of summaries far better than ROUGE-L",
    ),
    System(
        "Self-Align",
        "2305.03047",
        "a model aligned on its own answers under 16 principles, with under 300 lines of human text",
    ),
    System(
        "EfficientViT",
        "2305.07027",
        "at equal accuracy, clearly more images a second than MobileNetV3 and MobileViT",
    ),
    System(
        "ParaDiGMS",
        "2305.16317",
        "Picard iteration over time steps draws a sample with 2 to 4 times less latency",
    ),
    System(
        "SoViT",
        "2305.13035",
        "the right shape halves inference cost at the same training compute and accuracy",
    ),
    System(
        "MMS",
        "2305.13516",
        "one recogniser for 1,107 languages halves Whisper's average error on 54 of them",
    ),
    System(
        "Sophia",
        "2305.14342",
        "a clipped diagonal second-order step reaches AdamW's loss in half the steps",
        "its setting lies at the edge of its grids; with the other estimator (Sophia-H) 79 % of the steps: partly",
    ),
    System(
        "MeZO",
        "2305.17333",
        "fine-tuning by forward passes only: up to 12x less memory, within 1 % of Adam on most tasks",
        "with 16 examples it stays behind Adam by 10 points (opposite)",
    ),
    System(
        "Dropout and double descent",
        "2305.16179",
        "with the right dropout rate the test error falls monotonically with sample and model size",
        "tuned ridge does nearly the same: 10 % is left",
    ),
)
