"""Tests of transformers that ours fails, and why it means to: class -> test (a pattern of fnmatch) -> reason."""

_NEVER_GUESSES = (
    "from_pretrained refuses a checkpoint that lacks tensors, where transformers warns and leaves them random"
)
_ONE_ROW = "as in transformers' own Pixtral, the tower returns the patches of all images in one row"

REASONS: dict[str, dict[str, str]] = {
    "ModelTesterMixin": {
        "test_correct_missing_keys": _NEVER_GUESSES,
        "test_base_model_prefix_loads_base_weights": _NEVER_GUESSES,
        "test_model_rope_scaling_from_config_*": "positions of a Small 4 are YaRN's or plain; other kinds are refused "
        "by name",
        "test_model_weights_reload_no_missing_tied_weights": _NEVER_GUESSES,
        "test_get_image_features_output_?": _ONE_ROW,
        "test_tp_plan_matches_params": "the plan also names q_proj, which a model has whose q_lora_rank is None",
    },
    "GenerationTesterMixin": {},
    "ProcessorTesterMixin": {},
    "ImageProcessingTestMixin": {
        "test_call_numpy_4_channels": "the tower reads three channels, so do_convert_rgb=False is refused by name",
        "test_new_models_require_torchvision_backend": "sizes and values are mistral-common's, pixel for pixel; "
        "torchvision resamples in another way",
    },
    "TokenizerTesterMixin": {},
    "TokenizersBackendTesterMixin": {},
    "PipelineTesterMixin": {},
}
