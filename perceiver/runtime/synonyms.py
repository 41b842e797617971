"""Short names of config keys, and the names of other code bases for them."""

SHORT_KEYS = {
    **{f"data.{name}": f"data.source.{name}" for name in ("root", "num_classes", "val_fraction", "test_fraction")},
    **{f"data.{name}": f"data.source.{name}" for name in ("fold", "num_folds", "num_samples")},
    **{f"data.{name}": f"data.readers.image.{name}" for name in ("image_size", "channels", "augment")},
    **{f"data.{name}": f"data.readers.image.{name}" for name in ("eval_crop", "max_value")},
    "data.clips": "data.readers.audio",
}
"""Short key, or first part of keys, on the command line and in overrides of a finished run -> the whole one."""

MOVED_KEYS = {
    "data.multi_label": "data.source.target=label",
    "data.target": "data.source.endings=[…,…]",
}
"""Former key -> its replacement."""
SYNONYMS = {
    "trainer.max_epochs": "epoch epochs num_epochs n_epochs max_epoch num_train_epochs",
    "trainer.max_steps": "steps num_steps max_step max_iters iterations num_iterations train_steps num_train_steps",
    "optimizer.lr": "learning_rate base_lr max_lr peak_lr lr_rate",
    "optimizer.weight_decay": "wd decay l2",
    "optimizer=…": "optim opt optimiser",
    "schedule=…": "scheduler lr_scheduler lr_schedule sched",
    "schedule.warmup_steps": "warmup num_warmup_steps warmup_epochs warmup_ratio",
    "loader.batch_size": "batch bs batchsize train_batch_size eval_batch_size per_device_train_batch_size",
    "loader.num_workers": "workers dataloader_num_workers n_workers num_worker",
    "trainer=gpu trainer.devices=…": "gpus gpu num_gpus n_gpus ngpus n_gpu nproc_per_node",
    "trainer.accelerator": "device cuda",
    "trainer=ddp": "ddp distributed multi_gpu",
    "trainer.precision": "amp fp16 bf16 half mixed_precision use_amp dtype",
    "trainer.gradient_clip_val": "clip grad_clip clip_grad gradient_clip max_grad_norm clip_grad_norm",
    "trainer.accumulate_grad_batches": "accum grad_accum accumulation_steps gradient_accumulation_steps accum_iter",
    "trainer.check_val_every_n_epoch": "eval_every val_every eval_interval val_interval eval_freq",
    "trainer.fast_dev_run": "debug dry_run smoke_test",
    "callbacks=[default,ema]": "ema use_ema model_ema ema_decay",
    "callbacks=[default,early_stopping]": "early_stop early_stopping patience",
    "checkpointing.every_n_steps": "save_every save_steps save_interval save_freq ckpt_every",
    "model=…": "arch architecture network net model_name backbone",
    "model.memory.dim": "embed_dim hidden_size hidden_dim d_model latent_dim d_latents model_dim width",
    "model.memory.num_latents": "n_latents latents",
    "model.memory.schedule.num_blocks": "depth layers n_layers num_hidden_layers",
    "model.memory.self_attention.num_heads": "heads n_heads n_head num_attention_heads latent_heads",
    "model.memory.self_attention.residual_dropout": "dropout drop drop_rate dropout_rate hidden_dropout_prob",
    "data=…": "dataset data_name dataset_name",
    "data.root": "data_dir data_path data_root dataset_dir dataset_path dataset_root path dir folder root root_dir",
    "data.image_size": "img_size input_size resolution crop_size size",
    "data.val_fraction": "val_split validation_split val_size val_ratio",
    "task.loss.label_smoothing": "smoothing",
    "task.loss.class_weights": "class_weight",
    "tokenizer.max_length": "seq_len max_len seq_length max_seq_len max_seq_length max_tokens",
    "seed": "random_seed manual_seed rng_seed",
    "logger=…": "report_to log_with loggers tracker",
    "logger=tensorboard": "tensorboard tb use_tensorboard",
    "logger.mode": "wandb use_wandb wandb_mode",
    "logger.project": "wandb_project project_name",
    "logger.name": "run_name exp_name experiment_name exp wandb_name",
    "logger.entity": "wandb_entity team",
    "hydra.run.dir": "output_dir out_dir outdir output save_dir log_dir logdir workdir work_dir results_dir",
    "run=DIR": "resume resume_from resume_from_checkpoint auto_resume",
    "ckpt_path": "checkpoint ckpt checkpoint_path resume_path",
}
"""Key or override -> names for it in other code bases."""
ALIASES = {alias: key for key, aliases in SYNONYMS.items() for alias in aliases.split()}
"""Name in another code base -> key or override."""
