"""What `engines` runs of llama.cpp, as processes of their own, because the Pythons that have its parts have nothing of
ours.

    python llama_worker.py convert TREE CHECKPOINT --outfile FILE --outtype f32 [...]    # needs torch and transformers
    python llama_worker.py quantize FROM TO KIND < OVERRIDES                              # needs llama-cpp-python
    python llama_worker.py answer NEW_TOKENS < REQUEST                                    # needs llama-cpp-python

REQUEST is JSON: `{"model": GGUF file, "tower": GGUF file or null, "overrides": {GGUF key: value}, "prompts": [PROMPT, ...]}`, a PROMPT
`{"before": [ids], "image": null or [height, width, hexadecimal RGB], "after": [ids]}`. Answers are printed as JSON,
`[[ids, log-probabilities], ...]`.
"""  # noqa: E501

import ctypes
import json
import sys
from typing import Any

CONTEXT = 4096


def convert(tree: str, arguments: list[str]) -> None:
    """llama.cpp's own converter, out of its source tree, told one thing: the pre-tokenizer, which it knows by the hash
    of a whole vocabulary only, not of a small one."""
    sys.path[:0] = [tree, f"{tree}/gguf-py"]
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    import conversion.base

    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "tekken"
    import convert_hf_to_gguf

    convert_hf_to_gguf.main()


def quantize(file: str, to: str, kind: str, overrides: dict[str, Any]) -> None:
    """What `llama-quantize --override-kv ... FROM TO KIND` does: the overrides are kept in the new file."""
    import llama_cpp as c

    settings = c.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = getattr(c, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
    entries = (c.llama_model_kv_override * (len(overrides) + 1))()  # an empty one ends the list
    for entry, (key, value) in zip(entries, overrides.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, int):
            entry.tag, entry.value.val_i64 = c.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            entry.tag, entry.value.val_f64 = c.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
    settings.kv_overrides = entries
    assert c.llama_model_quantize(file.encode(), to.encode(), ctypes.byref(settings)) == 0


class Engine:
    """A model, and its tower where there is one; the cache in float32 (GGML type 0), attention not fused."""

    def __init__(self, model: str, tower: str | None, overrides: dict[str, Any]) -> None:
        from llama_cpp import Llama, mtmd_cpp

        exact = {"type_k": 0, "type_v": 0, "flash_attn": False, "n_threads": 1, "n_threads_batch": 1}
        self.llama = Llama(
            model, n_ctx=CONTEXT, logits_all=True, verbose=False, kv_overrides=overrides or None, **exact
        )
        self.mtmd, self.tower = mtmd_cpp, None
        if tower:
            settings = mtmd_cpp.mtmd_context_params_default()
            settings.use_gpu, settings.warmup, settings.flash_attn_type, settings.n_threads = False, False, 0, 1
            self.tower = mtmd_cpp.mtmd_init_from_file(tower.encode(), self.llama._model.model, settings)
            assert self.tower, f"{tower} was not loaded"

    def answer(self, prompt: dict[str, Any], new_tokens: int) -> tuple[list[int], list[float]]:
        """Greedy tokens and their log-probabilities."""
        import numpy as np

        self.llama.reset()
        self.llama._ctx.kv_cache_clear()
        self.llama.eval(prompt["before"])
        if prompt["image"]:
            self.look(*prompt["image"])
            self.llama.eval(prompt["after"])
        new: list[int] = []
        values: list[float] = []
        while True:
            row = np.asarray(self.llama.scores[self.llama.n_tokens - 1], dtype=np.float64)
            token = int(np.argmax(row))
            values.append(float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum())))
            new.append(token)
            if len(new) == new_tokens or token == 2:
                return new, values
            self.llama.eval([token])

    def look(self, height: int, width: int, pixels: str) -> None:
        """Put an image at the end of the context: its rows, each with its break, without the mark that ends it."""
        m, data = self.mtmd, bytes.fromhex(pixels)
        bitmap = m.mtmd_bitmap_init(width, height, (ctypes.c_uint8 * len(data)).from_buffer_copy(data))
        marker = m.mtmd_default_marker()
        text = m.mtmd_input_text(marker, len(marker), False, True)
        chunks = m.mtmd_input_chunks_init()
        assert m.mtmd_tokenize(self.tower, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1) == 0
        chunk = m.mtmd_input_chunks_get(chunks, 0)
        at = ctypes.c_int32(self.llama.n_tokens)
        context = self.llama._ctx.ctx
        assert not m.mtmd_helper_eval_chunk_single(self.tower, context, chunk, at, 0, 512, False, ctypes.byref(at))
        self.llama.n_tokens = at.value
        m.mtmd_input_chunks_free(chunks)
        m.mtmd_bitmap_free(bitmap)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(sys.argv[2], sys.argv[3:])
    elif sys.argv[1] == "quantize":
        quantize(sys.argv[2], sys.argv[3], sys.argv[4], json.load(sys.stdin))
    else:
        asked = json.load(sys.stdin)
        engine = Engine(asked["model"], asked["tower"], asked["overrides"])
        print(json.dumps([engine.answer(prompt, int(sys.argv[2])) for prompt in asked["prompts"]]))
