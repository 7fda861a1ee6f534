"""What other tools call the keys of the config and the flags of `resflax train`."""

# Names of a key in timm, PyTorch's and torchvision's scripts, Lightning, Transformers and Keras.
# Case and underscores do not matter.
ALIASES: dict[str, str] = {
    "model": "a arch architecture backbone net network model_name model_type",
    "pretrained": (
        "weights pretrained_weights pretrained_path initial_checkpoint init_checkpoint finetune"
        " finetune_from load_from model_path pretrained_model model_name_or_path init_from"
    ),
    "freeze": "frozen freeze_layers freeze_backbone freeze_encoder trainable frozen_stages",
    "reset_head": "new_head reset_classifier ignore_mismatched_sizes",
    "freeze_batch_norm": "freeze_bn bn_eval freeze_norm",
    "batch_norm": "sync_bn sync_batchnorm dist_bn split_bn bn",
    "dtype": "amp_dtype param_dtype compute_dtype dtype_policy model_dtype",
    "remat": "grad_checkpointing gradient_checkpointing checkpoint_activations",
    "scan": "scan_layers scan_blocks",
    "seed": "random_seed random_state rng_seed manual_seed",
    "dataset": "dataset_name data_name train_data train_dataset task ds",
    "data.image_size": (
        "img_size imgsz resolution input_size input_shape image_shape train_crop_size crop_size"
        " image_resolution target_size train_size resize size train_resolution"
    ),
    "data.eval_size": (
        "val_crop_size test_input_size val_resize_size eval_resolution test_size eval_image_size"
        " val_size eval_crop_size test_resolution"
    ),
    "data.crop_pct": "crop_ratio_eval eval_crop_ratio crop_percent center_crop",
    "data.channels": "in_chans in_channels input_channels num_channels color_mode",
    "data.on_bad_example": "skip_bad ignore_errors on_error",
    "data.validation": (
        "val_fraction val_ratio validation_ratio validation_fraction valid_pct holdout val_percent"
        " val_split split_ratio"
    ),
    "data.num_workers": (
        "workers j num_worker n_workers dataloader_num_workers data_workers num_data_workers"
        " train_num_workers"
    ),
    "data.placement": "cache cache_ds cache_dataset data_on_device",
    "data.pad_crop": "random_crop padding crop_padding random_crop_padding pad",
    "data.train_crop": "inception_crop train_crop_mode random_resized_crop rrc random_resize_crop",
    "data.crop_scale": "scale rrc_scale train_scale area_range",
    "data.crop_ratio": "ratio rrc_ratio train_ratio aspect_ratio aspect_ratio_range",
    "data.crop_mode": "test_crop_mode eval_crop_mode",
    "data.flip": (
        "hflip horizontal_flip random_flip fliplr random_horizontal_flip hflip_prob mirror"
    ),
    "data.auto_augment": "aa auto_augment_policy trivial_augment ta_wide augmix",
    "data.rand_augment": "randaug ra ra_magnitude",
    "data.train_interpolation": "train_resize_mode",
    "data.grayscale": "grayscale_prob gray_prob random_grayscale",
    "data.gaussian_blur": "gaussian_blur_prob blur_prob blur",
    "data.solarize": "solarize_prob",
    "data.color_jitter": "jitter colour_jitter color_jitter_prob",
    "data.random_erasing": "reprob random_erase erasing erase_prob random_erase_prob",
    "data.mixup": "mixup_alpha mix_alpha",
    "data.cutmix": "cutmix_alpha",
    "data.mixup_prob": "mix_prob",
    "data.mixup_switch_prob": "switch_prob",
    "data.size_schedule": "progressive_resizing size_steps resolution_schedule image_sizes",
    "data.mixup_mode": "mix_mode",
    "data.repeats": "aug_repeats ra_reps ra_sampler repeated_aug num_repeats",
    "data.aug_splits": "augmix_splits num_aug_splits",
    "data.mean": "image_mean pixel_mean norm_mean",
    "data.std": "image_std pixel_std norm_std stddev",
    "optimizer": "opt optim optimiser optimizer_name solver optimizer_type",
    "learning_rate": (
        "lr base_lr initial_lr init_lr max_lr peak_lr lr0 eta lr_max lr_init blr base_learning_rate"
    ),
    "learning_rate_scaling": "lr_base_scale scale_lr auto_scale_lr lr_scaling",
    "base_batch_size": "lr_base_size reference_batch_size",
    "learning_rate_factors": "learning_rates lr_mult param_groups paramwise_cfg lr_multipliers",
    "min_learning_rate": "min_lr lr_min eta_min end_lr final_lr minimum_learning_rate lr_end",
    "warmup_learning_rate": "warmup_lr warmup_lr_init warmup_start_lr lr_warmup_init",
    "head_learning_rate": "head_lr lr_head classifier_lr lr_classifier",
    "layer_decay": "llrd layer_lr_decay layerwise_lr_decay lr_layer_decay layer_wise_decay",
    "momentum": "sgd_momentum mom beta",
    "nesterov": "use_nesterov",
    "betas": "beta1 beta2 opt_betas adam_beta1 adam_beta2 b1 b2 adam_betas",
    "eps": "epsilon opt_eps adam_epsilon optimizer_eps",
    "grad_clip": (
        "grad_clip_norm clip_grad clip_grad_norm gradient_clip_val max_grad_norm clipnorm"
        " global_clipnorm gradient_clip gradient_clipping clip"
    ),
    "grad_clip_mode": "clip_mode gradient_clip_algorithm",
    "sam_rho": "sam rho sharpness_aware use_sam",
    "batch_size": (
        "bs b batch train_batch_size per_device_train_batch_size mini_batch_size"
        " global_batch_size batch_size_per_gpu batch_size_train"
    ),
    "steps_per_call": "steps_per_execution steps_per_loop iterations_per_loop",
    "grad_accum_steps": (
        "grad_accum gradient_accumulation_steps accumulate_grad_batches accumulation_steps"
        " accumulate_steps accum_steps update_freq iter_size accum_iter"
    ),
    "on_nonfinite": "skip_nan terminate_on_nan detect_nan",
    "epochs": "num_epochs n_epochs max_epochs num_train_epochs nb_epochs epoch ep",
    "schedule": (
        "sched scheduler lr_scheduler lr_schedule lr_scheduler_type lr_policy schedule_name"
        " learning_rate_schedule"
    ),
    "decay_epochs": (
        "milestones lr_steps lr_step_size decay_milestones lr_decay_epochs step_size lr_milestones"
    ),
    "decay_rate": "gamma lr_gamma lr_decay_rate lr_decay decay_factor lr_factor",
    "plateau_patience": "patience_epochs lr_patience patience_t reduce_lr_patience",
    "plateau_threshold": "lr_threshold min_delta plateau_min_delta",
    "polynomial_power": "power poly_power lr_power",
    "schedule_cycles": "lr_cycle_limit num_cycles n_cycles snapshots lr_cycles",
    "weight_decay": "wd l2 l2_reg decay weight_decay_rate l2_regularization regularization",
    "weight_decay_factors": "wd_factors wd_mult decay_mult weight_decays norm_decay bias_decay",
    "decay_mask": "no_weight_decay no_decay norm_weight_decay bias_weight_decay filter_bias_and_bn",
    "loss": "criterion loss_fn bce_loss loss_function",
    "bce_target_threshold": "bce_target_thresh bce_threshold",
    "jsd_weight": "jsd_loss jsd jsd_alpha",
    "loss_sum_classes": "bce_sum",
    "label_smoothing": "smoothing ls label_smooth lsr label_smoothing_factor smooth",
    "distill.teacher": "teacher_model teacher_path kd_model_name kd_model",
    "distill.temperature": "kd_temperature kd_t distillation_temperature",
    "distill.weight": "kd_alpha kd_weight distillation_alpha distill_alpha",
    "ema_decay": "model_ema model_ema_decay ema use_ema ema_momentum ema_rate averaging",
    "ema_every_steps": "model_ema_steps ema_update_every ema_update_interval ema_interval",
    "ema_start_step": "update_after_step ema_update_after_step ema_start model_ema_start",
    "ema_warmup": "model_ema_warmup",
    "eval_tta": "tta test_time_augmentation",
    "precise_bn_batches": "precise_bn recalibrate_batches update_bn bn_recalibration",
    "log_every_steps": (
        "log_interval print_freq log_every log_every_n_steps logging_steps log_freq log_steps"
    ),
    "log_to": "wandb log_wandb use_wandb tensorboard tb logger loggers report_to mlflow trackers",
    "profile_steps": "profile profiler profile_batch",
    "eval_sets": "val_datasets eval_datasets extra_eval evaluation_sets",
    "eval_every_epochs": (
        "val_interval eval_freq eval_every eval_interval check_val_every_n_epoch validation_freq"
        " validate_every test_interval val_freq"
    ),
    "checkpoint_every_steps": (
        "save_steps save_every save_freq checkpoint_freq save_interval recovery_interval ckpt_freq"
        " checkpoint_every save_every_n_steps every_n_train_steps"
    ),
    "checkpoint_max_to_keep": (
        "checkpoint_hist save_total_limit max_to_keep keep_checkpoints save_top_k keep"
    ),
    "ensemble.size": "num_members ensemble_size n_members num_networks num_models ensemble",
    "parallel": "strategy engine ddp data_parallel distribution_strategy parallelism",
    "mesh.fsdp": "zero zero_stage shard",
    "spec.dropout": "drop drop_rate dropout_rate dropout_prob",
    "spec.drop_path": (
        "drop_path_rate stochastic_depth stochastic_depth_rate stochastic_depth_prob survival_prob"
    ),
    "spec.drop_block": "drop_block_rate",
    "spec.depths": "layers num_layers blocks depth num_blocks",
    "spec.widths": "width channels_per_stage planes",
    "spec.zero_init": "zero_init_residual zero_init_last zero_gamma",
    "spec.stem": "stem_type",
    "spec.norm": "norm_layer norm_type",
    "spec.norm_epsilon": "bn_eps bn_epsilon batch_norm_epsilon norm_eps",
}
# Names of flags of the command line.
FLAGS: dict[str, str] = {
    "workdir": (
        "output output_dir outdir out save_dir log_dir exp_dir save_path experiment run_name"
        " default_root_dir results_dir model_dir work_dir run_dir checkpoint_dir ckpt_dir project"
        " exp_name job_dir o output_folder output_path"
    ),
    "config": "cfg config_file recipe yaml",
    "coordinator": "dist_url master_addr coordinator_address init_method",
    "num_processes": "world_size num_nodes nnodes num_hosts",
    "process_id": "rank local_rank node_rank process_index",
}
# Names that no key or flag corresponds to, and what to do instead.
ADVICE: dict[str, str] = {
    "num_classes n_classes nb_classes classes nc num_labels": (
        "the classes are those of the dataset"
    ),
    "data_path data_dir root path data data_root data_folder train_dir train_folder image_folder"
    " train_path imagenet_dir image_dir dataset_path dataset_dir folder": (
        "config.dataset=folder:PATH reads a folder of images; config.data.data_dir is where"
        " prepared TensorFlow Datasets are"
    ),
    "val_dir val_path test_dir val_data validation_data eval_data": (
        "config.dataset=folder:PATH has its splits in PATH/train and PATH/val or PATH/test"
    ),
    "dataset_download download": "`resflax data prepare NAME` prepares a dataset",
    "device devices gpu gpus gpu_id gpu_ids num_gpus ngpus n_gpu cuda no_cuda use_cuda cpu use_cpu"
    " accelerator platform tpu use_gpu": (
        "JAX uses all devices of the fastest kind: JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES=0"
        " choose others"
    ),
    "checkpoint ckpt ckpt_path resume_from resume_from_checkpoint resume resume_path auto_resume"
    " continue restore load load_checkpoint start_epoch": (
        "the same --workdir resumes a run, and config.pretrained starts one from other weights"
    ),
    "warmup_steps num_warmup_steps warmup warmup_ratio warmup_iters warmup_t lr_warmup"
    " lr_warmup_epochs warmup_fraction pct_start warmup_proportion lr_warmup_steps": (
        "config.warmup_epochs is the warm-up in epochs"
    ),
    "steps num_steps total_steps train_steps num_train_steps iterations max_iter num_iters iters": (
        "config.epochs is the length of a run, in epochs; config.max_steps ends it earlier"
    ),
    "bn_momentum batch_norm_momentum": (
        "config.spec.norm_momentum is the decay of the running statistics, 1 minus the momentum of"
        " PyTorch"
    ),
    "steps_per_epoch": "an epoch is one pass over the training split",
    "checkpoint_every_epochs save_every_epochs save_epoch_freq save_freq_epochs": (
        "config.checkpoint_every_steps and config.checkpoint_every_minutes say when a run is saved"
    ),
    "eval_steps": "config.eval_every_epochs says how often a run is evaluated",
    "eval_batch_size val_batch_size test_batch_size validation_batch_size"
    " per_device_eval_batch_size": "config.batch_size is that of the evaluation too",
    "eval evaluate test test_only eval_only validate do_eval evaluation": (
        "`resflax evaluate WORKDIR` evaluates a trained network"
    ),
    "amp fp16 bf16 precision mixed_precision half half_precision use_amp float16 bfloat16": (
        "config.dtype=bfloat16 computes in half precision"
    ),
    "patience early_stopping early_stop early_stopping_patience": (
        "a run has a fixed number of config.epochs, and its best checkpoint is kept;"
        " config.plateau_patience is that of config.schedule=plateau"
    ),
    "cooldown": "config.schedule=plateau has none: leave it out",
    "limit_train_batches": "config.max_steps ends a run early",
    "resplit": "the first copy of config.data.aug_splits is always clean: leave it out",
    "compile torchcompile jit xla use_xla": "steps are always compiled",
    "shuffle": "training examples are always shuffled, by config.seed",
    "pin_mem pin_memory prefetch_factor prefetch channels_last persistent_workers": (
        "there is nothing to set: leave it out"
    ),
    "vflip vertical_flip flipud rotation degrees rotate translate shear zoom": (
        "config.data.rand_augment and config.data.flip are the geometric augmentations"
    ),
    "monitor metric metrics metric_for_best_model eval_metric best_metric": (
        "the best checkpoint is that of the highest accuracy on the validation split, or else the"
        " test split"
    ),
    "verbose quiet v q silent debug": "there is no such choice: leave it out",
}
