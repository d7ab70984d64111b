"""What settings are called in the tools that people come from (transformers, TRL, PEFT, axolotl), and what here."""

from __future__ import annotations

from collections.abc import Iterable

# Their names in lower case with underscores; ours as a setting, perhaps with its value.
OURS = {
    "model_name_or_path": "model",
    "model_name": "model",
    "base_model": "model",
    "adapter_name_or_path": "model",
    "dataset": "data",
    "datasets": "data",
    "dataset_name": "data",
    "train_file": "data",
    "train_data": "data",
    "validation_file": "heldout",
    "eval_dataset": "heldout",
    "val_set_size": "heldout_share",
    "output_dir": "out",
    "output": "out",
    "lr": "learning_rate",
    "max_steps": "steps",
    "num_steps": "steps",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "batch_size": "batch_tokens",
    "micro_batch_size": "batch_tokens",
    "per_device_train_batch_size": "batch_tokens",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "recompute",
    "max_length": "sequence_length",
    "max_seq_length": "sequence_length",
    "max_seq_len": "sequence_length",
    "block_size": "sequence_length",
    "bf16": "precision bfloat16",
    "fp16": "precision bfloat16",
    "dtype": "precision",
    "torch_dtype": "precision",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "adam_epsilon": "optimizer.eps",
    "max_grad_norm": "optimizer.clip_norm",
    "warmup": "schedule.warmup",
    "warmup_steps": "schedule.warmup",
    "warmup_ratio": "schedule.warmup",
    "lr_scheduler_type": "schedule.kind",
    "use_peft": "method lora",
    "peft": "method lora",
    "load_in_4bit": "method qlora",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "lora_target_modules": "method.targets",
    "target_modules": "method.targets",
    "modules_to_save": "method.modules_to_save",
    "lora_modules_to_save": "method.modules_to_save",
    "trainable_token_indices": "method.trained_tokens",
    "eval_steps": "evaluate_every",
    "save_steps": "save_every",
    "max_new_tokens": "max_tokens",
    "tasks": "task",
    "bits": "method.target_bits",
    "early_stopping_patience": "weights.patience",
    "load_best_model_at_end": "weights best",
    "device_map": "device",
    "no_cuda": "device cpu",
    "use_cpu": "device cpu",
    "report_to": "tensorboard",
    "use_wandb": "wandb",
    "wandb_project": "wandb",
    "logging_dir": "tensorboard",
}


def elsewhere(name: str, known: Iterable[str]) -> str:
    """What a setting of another tool is called here, as it is typed; "" where ``known`` has no such setting.

    known: names of settings, dotted or not, with underscores.
    """
    ours = OURS.get(name.lower().lstrip("-").replace("-", "_"), "")
    return ours if ours.partition(" ")[0].partition(".")[0] in set(known) else ""
