"""The 23 results of spring 2023 that Mickle is made of: paper, arXiv id, claim. A system is built when its
page exists.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """One paper: its number in Mickle, the name of its study page, and what it claims, in one line."""

    number: int
    name: str
    label: str
    title: str
    arxiv: str
    claim: str
    but: str = ""  # what a reader would hold against the verdict, in the front table beside it


SYSTEMS = (
    System(
        1,
        "dpo",
        "DPO",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "2305.18290",
        "preferences train a policy by one logistic loss, at least as well as PPO, without a reward model",
    ),
    System(
        2,
        "lima",
        "LIMA",
        "LIMA: Less Is More for Alignment",
        "2305.11206",
        "1,000 chosen conversations align better than 52,000 generated ones",
    ),
    System(
        3,
        "qlora",
        "QLoRA",
        "QLoRA: Efficient Finetuning of Quantized LLMs",
        "2305.14314",
        "fine-tuning over 4-bit weights equals 16-bit fine-tuning; 65B fits in 48 GB",
        "the seeds see no difference under 32 % of that cost; 65B was not tried",
    ),
    System(
        4,
        "spqr",
        "SpQR",
        "SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression",
        "2306.03078",
        "3 to 4.7 bits a weight, a few outliers in 16, perplexity within 1 %",
        "a longer trained base lost 1.01 % in a pilot, and at 4.3 bits GPTQ is better (opposite)",
    ),
    System(
        5,
        "token_crisis",
        "Token crisis",
        "To Repeat or Not To Repeat: Insights from Scaling LLM under Token-Crisis",
        "2305.13230",
        "many epochs over few tokens degrade a model; dropout heals nearly half",
        "against stopping early, which costs nothing, no gain is shown",
    ),
    System(
        6,
        "doremi",
        "DoReMi",
        "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining",
        "2305.10429",
        "domain weights from a small robust proxy: the baseline's accuracy in 2.6x fewer steps",
        "finding the weights takes half to two thirds of that compute again; no gain on natural domains alone",
    ),
    System(
        7,
        "refinedweb",
        "RefinedWeb",
        "The RefinedWeb Dataset for Falcon LLM",
        "2306.01116",
        "filtered, strictly deduplicated web pages train better models than raw ones",
        "as good as curated is not shown",
    ),
    System(
        8,
        "false_promise",
        "False Promise",
        "The False Promise of Imitating Proprietary LLMs",
        "2305.15717",
        "imitating a stronger model's answers teaches its style, not its knowledge",
    ),
    System(
        9,
        "nope",
        "NoPE",
        "The Impact of Positional Encoding on Length Generalization in Transformers",
        "2305.19466",
        "a decoder without position encoding extrapolates best to longer inputs",
        "arms stop when they have learned, after unequal steps, all at one learning rate that was not tuned",
    ),
    System(
        10,
        "goat",
        "Goat",
        "Goat: Fine-tuned LLaMA Outperforms GPT-4 on Arithmetic Tasks",
        "2305.14201",
        "hard arithmetic written as steps that tuning can learn lets 7B beat GPT-4 at it",
    ),
    System(
        11,
        "gorilla",
        "Gorilla",
        "Gorilla: Large Language Model Connected with Massive APIs",
        "2305.15334",
        "training with retrieved API documents gives correct calls that follow later changes",
    ),
    System(
        12,
        "dynamic_masking",
        "Dynamic masking",
        "Dynamic Masking Rate Schedules for MLM Pretraining",
        "2305.15096",
        "a mask rate falling from 30 to 15 % needs 1.89x fewer steps than 15 %",
        "against the best constant rate it needs more (opposite)",
    ),
    System(
        13,
        "blockwise",
        "Blockwise",
        "Blockwise Parallel Transformer for Large Context Models",
        "2305.19370",
        "exact blockwise layers train on 2 to 4 times longer sequences than memory-efficient attention",
    ),
    System(
        14,
        "rwkv",
        "RWKV",
        "RWKV: Reinventing RNNs for the Transformer Era",
        "2305.13048",
        "a recurrent model trained in parallel matches transformers, in constant inference memory",
    ),
    System(
        15,
        "seahorse",
        "SEAHORSE",
        "SEAHORSE: A Multilingual, Multifaceted Dataset for Summarization Evaluation",
        "2305.13194",
        "metrics learned from ratings predict human judgement of summaries far better than ROUGE-L",
    ),
    System(
        16,
        "self_align",
        "Self-Align",
        "Principle-Driven Self-Alignment of Language Models from Scratch with Minimal Human Supervision",
        "2305.03047",
        "a model aligned on its own answers under 16 principles, with under 300 lines of human text",
    ),
    System(
        17,
        "efficientvit",
        "EfficientViT",
        "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention",
        "2305.07027",
        "at equal accuracy, clearly more images a second than MobileNetV3 and MobileViT",
    ),
    System(
        18,
        "paradigms",
        "ParaDiGMS",
        "Parallel Sampling of Diffusion Models",
        "2305.16317",
        "Picard iteration over time steps draws a sample with 2 to 4 times less latency",
    ),
    System(
        19,
        "sovit",
        "SoViT",
        "Getting ViT in Shape: Scaling Laws for Compute-Optimal Model Design",
        "2305.13035",
        "the right shape halves inference cost at the same training compute and accuracy",
    ),
    System(
        20,
        "mms",
        "MMS",
        "Scaling Speech Technology to 1,000+ Languages",
        "2305.13516",
        "one recogniser for 1,107 languages halves Whisper's average error on 54 of them",
    ),
    System(
        21,
        "sophia",
        "Sophia",
        "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training",
        "2305.14342",
        "a clipped diagonal second-order step reaches AdamW's loss in half the steps",
    ),
    System(
        22,
        "mezo",
        "MeZO",
        "Fine-Tuning Language Models with Just Forward Passes",
        "2305.17333",
        "fine-tuning by forward passes only: up to 12x less memory, within 1 % of Adam on most tasks",
        "with 16 examples it stays behind Adam by 10 points (opposite)",
    ),
    System(
        23,
        "dropout_double_descent",
        "Dropout and double descent",
        "Dropout Drops Double Descent",
        "2305.16179",
        "with the right dropout rate the test error falls monotonically with sample and model size",
        "tuned ridge does nearly the same: 10 % is left",
    ),
)
