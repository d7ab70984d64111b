"""What settings are called in the tools that people come from (transformers, TRL, PEFT, axolotl), and what here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    "o": "out",
    "input": "source or data",
    "input_dir": "source",
    "model_type": "architecture",
    "num_hidden_layers": "size",
    "hidden_size": "size",
    "n_layer": "size",
    "n_embd": "size",
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
    "load_in_4bit": "method qlora or method nf4",
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
    "use_wandb": "wandb",
    "wandb_project": "wandb",
    "logging_dir": "tensorboard",
}


# What has no setting here, and why.
WITHOUT = {
    "resume": "the same command goes on where it was",
    "resume_from_checkpoint": "the same command goes on where it was",
    "load_in_8bit": "a base is stored in 4 bits (qlora) or in 16",
    "packing": "examples are packed into rows, and none sees another",
    "batch_size": "as many at a time as memory takes",
    "logging_steps": "every step stands in metrics.jsonl",
    "save_total_limit": "two checkpoints are kept, until the run ends",
    "report_to": "it is --tensorboard FOLDER, --wandb FOLDER or --trackio FOLDER",
    "num_return_sequences": "name a prompt as often as it is to be continued",
    "do_sample": "a temperature of 0 takes the likeliest token, any other draws",
    "trust_remote_code": "code of a model's folder is never run",
    "push_to_hub": "nothing is sent anywhere",
    "token": "nothing is downloaded",
    "attn_implementation": "the fastest attention is chosen by itself",
    "use_flash_attention_2": "the fastest attention is chosen by itself",
    "deepspeed": "torchrun shards a training by itself",
    "fsdp": "torchrun shards a training by itself",
}


def elsewhere(name: str, known: Mapping[str, Sequence[str]], mark: str = "") -> str:
    """What a setting of another tool is called here, in a sentence; "" where there is nothing to say.

    known: the settings that there are, dotted, with underscores, and the kinds of those that hold a choice. mark: what
    stands before a setting where it is typed; then its words have hyphens.
    """
    plain = name.lower().lstrip("-").replace("-", "_")
    for ours in OURS.get(plain, "").split(" or "):
        setting, _, value = ours.partition(" ")
        setting = setting if setting in known else setting.rpartition(".")[2]
        if setting and setting in known and (not value or not known[setting] or value in known[setting]):
            typed = setting.replace("_", "-") if mark else setting
            return f"here it is {mark}{typed} {value}".rstrip()
    return WITHOUT.get(plain, "")
