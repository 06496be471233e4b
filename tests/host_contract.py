"""What of transformers we override, or rely on beyond its public names: each with the reason. `test_host_contract`
holds it to the installed one.

Public is what `transformers` itself exports. A newer transformers may move any of the rest; the test then says which
row has to be looked at. Whoever overrides or imports something more adds a row.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One thing of transformers.

    Attributes:
        name: "module:name" or "module:class.name".
        reason: What we do with it, and why.
        parameters: Of a function, all its parameters, as we call it or are called; None for what is not called.
        words: What its source says, for behavior that no signature shows.
    """

    name: str
    reason: str
    parameters: str | None = None
    words: tuple[str, ...] = ()


GENERATION = "transformers.generation.utils:GenerationMixin"
MODEL = "transformers.modeling_utils:PreTrainedModel"

OVERRIDDEN = (
    # generate
    Row(
        f"{GENERATION}._prepare_generation_config", "adds the latent caches to a closed list of names, and takes our "
            "preset out",
        "self generation_config kwargs",
        ("copy.deepcopy(generation_config)",),
    ),
    Row(
        f"{GENERATION}._prepare_cache_for_generation", "a latent cache where a dynamic one would be made",
        "self generation_config model_kwargs generation_mode batch_size max_cache_length",
    ),
    Row(
        f"{GENERATION}._prefill", "reads long prompts in chunks; `generate` has no hook that sees the prompt's length",
        "self input_ids generation_config model_kwargs is_first_iteration", ("prefill_chunk_size", "_mask_length"),
    ),
    Row(
        f"{GENERATION}._get_logits_processor", "a grammar is told the length at which the answer is cut off, once it "
            "is resolved",
        "self generation_config input_ids_seq_length encoder_input_ids prefix_allowed_tokens_fn logits_processor "
        "device model_kwargs negative_prompt_ids negative_prompt_attention_mask", ("max_length",),
    ),
    Row(
        f"{GENERATION}._get_candidate_generator", "drafts of the latency preset; `generate` takes no generator from "
            "outside",
        "self generation_config input_ids inputs_tensor logits_processor model_kwargs assistant_model "
        "target_tokenizer assistant_tokenizer",
    ),
    Row(
        f"{GENERATION}._assisted_decoding", "fills the cache first: the prompt and the first draft would go in one "
            "forward",
        "self input_ids logits_processor stopping_criteria generation_config synced_gpus streamer inputs_tensor "
        "assistant_model "
        "assistant_tokenizer tokenizer model_kwargs",
        ("model_kwargs=model_kwargs", "**candidate_kwargs", "candidate_length + 1 if not is_first_iteration else None"),
    ),
    Row(
        f"{GENERATION}._sample", "decodes with drafts, several tokens a step; `generate` has no hook around a step",
        "self input_ids logits_processor stopping_criteria generation_config synced_gpus streamer model_kwargs",
    ),
    Row(
        f"{GENERATION}.prepare_inputs_for_generation", "takes what assisted decoding is not to read again",
        "self input_ids next_sequence_length cache attention_mask inputs_embeds is_first_iteration kwargs",
    ),
    Row(
        "transformers.generation.continuous_batching.continuous_api:ContinuousBatchingManager._create_batch_processor",
        "makes the pages for one latent head", "self", ("self.model",),
    ),
    Row(
        "transformers.generation.continuous_batching.continuous_api:ContinuousBatchingManager.switch_to_cb_friendly_attn",
        "flash attention would expand every latent at each step", "self model auto_switch_to_flash",
    ),
    # the model
    Row(f"{MODEL}._from_config", "the release's own configuration makes one of our models", "cls config kwargs"),
    Row(f"{MODEL}._can_set_attn_implementation", "decided by searching the source of the model's file", "cls"),
    Row(f"{MODEL}._can_set_experts_implementation", "decided by searching the source of the model's file", "cls"),
    Row(f"{MODEL}._init_weights", "routers and fused experts are no linear layers", "self module"),
    Row(
        f"{MODEL}._load_pretrained_model", "names and stored forms for this load alone; refuses what does not match",
        "model state_dict checkpoint_files load_config expected_keys", ("load_config.weight_mapping",),
    ),
    Row(
        "transformers.distributed.mixin:DistributedMixin.maybe_distribute_model",
        "pipeline stages of a model whose base is not the decoder itself", "cls model distributed_config mesh_manager",
    ),
    Row(
        "transformers.distributed.mixin:DistributedMixin._resolve_parallel_plans",
        "a rule for every code and scale of a stored weight: layers differ, and rules of the plan name no layer",
        "self distributed_config",
    ),
    Row(
        "transformers.distributed.pipeline_parallel:PipelineStage.find_rank_for_key", "the same: where a tensor "
            "belongs",
        "self key num_layers base_model_prefix",
    ),
    Row(f"{MODEL}._can_compile_fullgraph", "a step is one graph"),
    Row(f"{MODEL}._can_record_outputs", "which modules' outputs are recorded"),
    Row(f"{MODEL}._no_split_modules", "what accelerate keeps on one device"),
    Row(f"{MODEL}._skip_keys_device_placement", "a cache is not moved with other inputs"),
    Row(f"{MODEL}._supports_attention_backend", "kernels are chosen through the attention interface"),
    Row(f"{MODEL}._supports_flash_attn", "runs with it, expanded"),
    Row(f"{MODEL}._supports_flex_attn", "runs with it"),
    Row(f"{MODEL}._supports_sdpa", "runs with it"),
    Row(f"{MODEL}._tied_weights_keys", "which tensors are one"),
    Row("transformers.distributed.mixin:DistributedMixin._tp_size", "tells PEFT to gather the base to save an adapter"),
    Row("transformers.distributed.mixin:DistributedMixin._tp_plan", "how the head is cut over devices"),
    Row("transformers.distributed.mixin:DistributedMixin._pp_plan", "how the head is cut over stages"),
    Row("transformers.distributed.mixin:DistributedMixin._fsdp_plan", "how the head is sharded"),
    # configuration, tokenizer, processor
    Row(
        "transformers.configuration_utils:PreTrainedConfig._remove_keys_not_serialized",
        "trainers read `auto_map` of every configuration; an empty one is not written", "self d",
    ),
    Row("transformers.tokenization_utils_tokenizers:TokenizersBackend._decode", "special tokens stand out in decoded "
        "text",
        "self token_ids skip_special_tokens clean_up_tokenization_spaces kwargs"),
    Row("transformers.processing_utils:ProcessorMixin._get_arguments_from_pretrained", "a processor may have no image "
        "processor",
        "cls pretrained_model_name_or_path processor_dict kwargs"),
    Row("transformers.tokenization_utils_tokenizers:TokenizersBackend._encode_plus", "escapes, halves of surrogate "
        "pairs, one `<s>`",
        "self text text_pair add_special_tokens padding_strategy truncation_strategy max_length stride "
        "is_split_into_words "
        "pad_to_multiple_of padding_side return_tensors return_token_type_ids return_attention_mask "
        "return_overflowing_tokens "
        "return_special_tokens_mask return_offsets_mapping return_length verbose split_special_tokens kwargs"),
    Row("transformers.tokenization_utils_tokenizers:TokenizersBackend._add_tokens", "a new special token is escaped "
        "too",
        "self new_tokens special_tokens"),
    # quantized weights
    Row("transformers.quantizers.base:HfQuantizer._process_model_before_weight_loading", "modules that hold codes "
        "take the place of plain ones",
        "self model kwargs"),
    Row("transformers.quantizers.base:HfQuantizer._process_model_after_weight_loading", "packs in 4 bits what was read",
        "self model kwargs"),
    Row("transformers.quantizers.base:HfQuantizer._dequantize", "`model.dequantize()`", "self model dtype"),
)  # fmt: skip

IMPORTED = (
    Row("transformers.activations:ACT2FN", "activation functions by name"),
    Row("transformers.configuration_utils:SubConfigSpec", "the tower may be left out"),
    Row("transformers.convert_slow_tokenizer:bytes_to_unicode", "the characters that stand for bytes in a byte-level "
        "vocabulary", ""),
    Row("transformers.core_model_loading:WeightRenaming", "names of the release and of transformers"),
    Row("transformers.core_model_loading:apply_renamings", "the name that a stored tensor gets"),
    Row("transformers.distributed.pipeline_parallel:PipelineIdentityLayer", "stands where another stage has a layer"),
    Row("transformers.distributed.pipeline_parallel:PipelineStage", "sends and receives"),
    Row("transformers.generation.candidate_generator:CandidateGenerator", "base class of drafts"),
    Row(
        "transformers.generation.candidate_generator:_prepare_attention_mask", "the mask over drafted tokens",
        "model_kwargs new_length is_encoder_decoder",
    ),
    Row(
        "transformers.generation.candidate_generator:_prepare_position_ids", "positions of drafted tokens",
        "model_kwargs new_length is_encoder_decoder",
    ),
    Row("transformers.generation.utils:GenerateDecoderOnlyOutput", "what decoding with drafts returns"),
    Row("transformers.generation.continuous_batching.cache:PagedAttentionCache", "tells continuous batching from a "
        "plain call"),
    Row("transformers.generation.streamers:BaseStreamer", "base class of streamers"),
    Row("transformers.image_utils:ChannelDimension", "the order of an array's axes, as callers of image processors "
        "say it"),
    Row("transformers.pipelines:PIPELINE_REGISTRY", "our pipelines take the place of the two that generate"),
    Row("transformers.pipelines.text_generation:ReturnType", "which form of a pipeline's answer is asked for"),
    Row("transformers.utils.chat_template_utils:Chat", "a pipeline's input that is a conversation"),
    Row("transformers.processing_utils:MultiModalData", "how many tokens images take, as other engines ask"),
    Row("transformers.utils.chat_template_utils:_get_template_variables", "which options a caller's own template "
        "takes", "chat_template"),
    Row("transformers.utils.generic:PaddingStrategy", "the padding that a caller's option means"),
    Row("transformers.integrations.mistral.tokenizer:MistralConverter", "Tekken files to fast tokenizers"),
    Row("transformers.integrations.moe:ALL_EXPERTS_FUNCTIONS", "kernels of experts by name"),
    Row("transformers.integrations.moe:ExpertsInterface", "our kernel on a CPU", None, ("get_interface",)),
    Row("transformers.integrations:is_deepspeed_zero3_enabled", "DeepSpeed would cut stored weights", ""),
    Row("transformers.integrations:use_experts_implementation", "lets the name of a kernel choose it",
        "experts_class experts_interface is_concatenated is_transposed has_bias has_gate has_post_expert_norm"),
    Row("transformers.masking_utils:create_causal_mask", "masks of every kernel", None, ('getattr(config, '
        '"is_causal", True)',)),
    Row("transformers.masking_utils:find_packed_sequence_indices", "where packed texts begin", "position_ids"),
    Row("transformers.masking_utils:packed_sequence_mask_function", "packed texts do not see one "
        "another", "packed_sequence_mask"),
    Row("transformers.modeling_layers:GenericForSequenceClassification", "a task head"),
    Row("transformers.modeling_layers:GenericForTokenClassification", "a task head"),
    Row("transformers.modeling_outputs:BaseModelOutputWithPooling", "what the tower returns"),
    Row("transformers.modeling_outputs:MoeCausalLMOutputWithPast", "what the model returns"),
    Row("transformers.modeling_outputs:MoeModelOutputWithPast", "what the decoder returns"),
    Row("transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS", "attention kernels by name"),
    Row("transformers.modeling_utils:slice_logits_to_keep", "logits of the last positions "
        "only", "hidden_states logits_to_keep"),
    Row("transformers.models.auto:modeling_auto", "static tables of names, which the server reads and `register` "
        "leaves alone"),
    Row("transformers.models.mixtral.modeling_mixtral:load_balancing_loss_func", "the balance loss",
        "gate_logits num_experts top_k attention_mask"),
    Row("transformers.quantizers:HfQuantizer", "base class of a way to load"),
    Row("transformers.quantizers.auto:AUTO_QUANTIZATION_CONFIG_MAPPING", "whether a way to load is registered"),
    Row("transformers.quantizers.auto:AUTO_QUANTIZER_MAPPING", "whether a way to load is registered"),
    Row("transformers.quantizers.auto:register_quantization_config", "registers one", "method"),
    Row("transformers.quantizers.auto:register_quantizer", "registers one", "name"),
    Row("transformers.quantizers.quantizer_finegrained_fp8:FineGrainedFP8HfQuantizer", "FP8 on a GPU that computes in "
        "it"),
    Row("transformers.utils:get_json_schema", "a tool's schema from a Python function", "func"),
    Row("transformers.utils:is_kernels_available", "whether FP8 kernels can be had"),
    Row("transformers.utils:is_torchdynamo_compiling", "what is compiled takes another path", ""),
    Row("transformers.utils.generic:can_return_tuple", "`return_dict=False`", "func"),
    Row("transformers.utils.import_utils:is_tracing", "no look into tensors while a graph is made"),
    Row("transformers.utils.output_capturing:OutputRecorder", "which outputs are recorded"),
    Row("transformers.utils.output_capturing:capture_outputs", "`output_hidden_states` and the like, apart for each "
        "thread", None, ("ContextVar",)),
    Row("transformers.utils.quantization_config:QuantizationConfigMixin", "base class of a way to load"),
)  # fmt: skip

# Private names that are read or set, and behavior that nothing else shows.
RELIED_ON = (
    Row("transformers.models.auto.configuration_auto:AutoConfig.from_pretrained", "reads config.json itself to learn "
        "whose it is, so of a file that is no JSON its own error is seen; there is no hook before that",
        None, ("PreTrainedConfig.get_config_dict(pretrained_model_name_or_path",)),
    Row(f"{GENERATION}._get_logits_processor", "whether continuous batching can keep to all of them",
        "self generation_config input_ids_seq_length encoder_input_ids prefix_allowed_tokens_fn logits_processor "
        "device model_kwargs "
        "negative_prompt_ids negative_prompt_attention_mask"),
    Row(f"{GENERATION}._valid_auto_compile_criteria", "whether steps are compiled", "self model_kwargs "
        "generation_config"),
    Row(f"{GENERATION}.generate", "modes are methods of the class; a mask of ones is dropped and its length kept", None,
        ("getattr(type(self), GENERATION_MODES_MAPPING", "generation_config._mask_length")),
    Row(f"{GENERATION}.init_continuous_batching", "a manager that was kept is used "
        "again", None, ("_cached_continuous_batching_manager",)),
    Row(f"{MODEL}.from_pretrained", "a remote class is asked for by "
        "`is_remote_code`", None, ("_load_pretrained_model",)),
    Row(f"{GENERATION}._supports_logits_to_keep", "read of the model to make the pages", "self"),
    Row("transformers.modeling_utils:PreTrainedModel.save_pretrained", "reverses `_weight_conversions`, which we "
        "empty", None,
        ("revert_weight_conversion",)),
    Row("transformers.integrations.finegrained_fp8:replace_with_fp8_linear", "replaces what is `nn.Linear` itself, so "
        "ours are", None,
        ("type(module) is nn.Linear",)),
    Row("transformers.integrations.bitsandbytes:replace_with_bnb_linear", "the same", None,
        ("type(module) is nn.Linear",)),
    Row("transformers.integrations.sdpa_attention:sdpa_attention_forward", "what a kernel is called with, and reads "
        "off the module",
        "module query key value attention_mask dropout scaling is_causal position_bias "
        "kwargs", ("num_key_value_groups",)),
    Row("transformers.integrations.moe:grouped_mm_experts_forward", "what a kernel of experts is called with",
        "self hidden_states top_k_index top_k_weights"),
    Row("transformers.modeling_layers:GradientCheckpointingLayer", "checkpointing; it takes the cache away by its "
        "name", None, ('"cache"',)),
    Row("transformers.cache_utils:CacheLayerMixin", "the parts of a layer's cache"),
    Row("transformers.cache_utils:Cache.update", "latents go in as keys, values of no width beside them",
        "self key_states value_states layer_idx args kwargs"),
    Row("transformers.trainer_utils:TrainOutput", "callbacks are made for this Trainer"),
)  # fmt: skip

TABLE = OVERRIDDEN + IMPORTED + RELIED_ON
