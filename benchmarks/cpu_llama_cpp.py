"""Generation speed of the native CPU core beside llama.cpp, each with random weights of the same shape, interleaved.

pip install llama-cpp-python gguf
python benchmarks/cpu_llama_cpp.py --sizes 20M 320M --dtypes int8 --threads 2 1 --out results.json

A Doge and a Llama with as many layers, heads and channels, both with tied heads, complete the same prompt of 32 tokens
by 256 greedy ones; int8 stands beside llama.cpp's q8_0, int4 beside q4_0. llama.cpp runs through its C functions and
its own greedy sampler. Every round runs each variant once; the ratio is taken within a round. The benchmark refuses to
run where the Llama's logits are not transformers'. The last line printed is the rows as JSON.
"""

import argparse
import ctypes
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_decode import PROMPT, SIZES, interleave, native_decode, new_table, prompts, random_checkpoint
from rows import Table, finish
from transformers import LlamaConfig, LlamaForCausalLM

from small_doge.inference import native
from small_doge.inference.native import NativeModel

try:
    import gguf
    from llama_cpp import llama_cpp as api

    quiet = api.llama_log_callback(lambda level, text, data: None)
except ImportError as error:
    api, missing = None, f"{error}; pip install llama-cpp-python gguf"

COUNTERPARTS = {"fp32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
# What a layer's tensors are called in transformers and in a GGUF file.
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def random_llama(size: str) -> LlamaForCausalLM:
    row = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32768,
        hidden_size=row.width,
        intermediate_size=row.intermediate,
        num_hidden_layers=row.layers,
        num_attention_heads=row.heads,
        num_key_value_heads=row.key_value_heads,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection as GGUF keeps them: the two channels that RoPE turns together, side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: LlamaForCausalLM, path: Path, kind: str) -> None:
    """The model as one GGUF file without a vocabulary; matrices in `kind`, norms in fp32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)

    def add(name: str, weight: torch.Tensor, heads: int = 0) -> None:
        array = weight.detach().numpy()
        array = in_pairs(array, heads) if heads else array
        quantization = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, quantization), raw_dtype=quantization)

    add("token_embd.weight", model.model.embed_tokens.weight)
    add("output_norm.weight", model.model.norm.weight)
    turned = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for number, layer in enumerate(model.model.layers):
        for theirs, name in LAYER_NAMES.items():
            add(f"blk.{number}.{name}.weight", layer.get_submodule(theirs).weight, turned.get(name, 0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """A model in llama.cpp for one sequence, with llama.cpp's defaults but for the threads."""

    def __init__(self, path: Path, threads: int, slots: int = 512) -> None:
        api.llama_log_set(quiet, None)
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        options = api.llama_context_default_params()
        options.n_ctx = slots
        options.n_threads = options.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, options)
        self.greedy = api.llama_sampler_init_greedy()
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def prefill(self, ids: list[int]) -> None:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        self.step(ids)

    def step(self, ids: list[int]) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        if api.llama_decode(self.context, api.llama_batch_get_one(tokens, len(ids))):
            sys.exit("llama.cpp could not decode a token")

    def decode(self, new_tokens: int) -> list[int]:
        drawn = []
        for _ in range(new_tokens):
            drawn.append(api.llama_sampler_sample(self.greedy, self.context, -1))
            self.step(drawn[-1:])
        return drawn

    def logits(self) -> np.ndarray:
        """Logits [V] after the last token."""
        return np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, -1), (self.vocabulary,)).copy()

    def close(self) -> None:
        api.llama_free(self.context)
        api.llama_model_free(self.model)


def llama_cpp_decode(model: LlamaCpp, new_tokens: int) -> float:
    """tokens/s from the prompt on, as the native core is timed: prefill included."""
    start = time.perf_counter()
    model.prefill(prompts(1, PROMPT)[0])
    model.decode(new_tokens)
    return new_tokens / (time.perf_counter() - start)


def refuse_if_wrong(model: LlamaForCausalLM, folder: Path) -> None:
    """In fp32 the logits differ by what llama.cpp's cache of 16 bits costs; with queries turned wrongly, by 0.04."""
    ids = prompts(1, 64)
    with torch.no_grad():
        expected = model(torch.tensor(ids), logits_to_keep=1).logits[0, 0].numpy()
    write_gguf(model, folder / "F32.gguf", "F32")
    written = LlamaCpp(folder / "F32.gguf", 1)
    written.prefill(ids[0])
    apart = np.abs(written.logits() - expected).max()
    written.close()
    if apart > 5e-3:
        sys.exit(f"the Llama in llama.cpp is not transformers': logits differ by {apart:.4f}; nothing is timed")


def measure(args: argparse.Namespace, size: str, table: Table, folder: Path) -> None:
    random_checkpoint(size, folder)
    llama = random_llama(size)
    refuse_if_wrong(llama, folder)
    files = {dtype: folder / f"{COUNTERPARTS[dtype]}.gguf" for dtype in args.dtypes}
    for dtype, path in files.items():
        write_gguf(llama, path, COUNTERPARTS[dtype])
        table.add(f"llama.cpp {COUNTERPARTS[dtype]}", size, "file MB", [path.stat().st_size / 1e6])
    del llama
    for threads in args.threads:
        ours = {dtype: NativeModel.load(folder, dtype, threads) for dtype in args.dtypes}
        theirs = {dtype: LlamaCpp(path, threads) for dtype, path in files.items()}
        runs: dict[str, Any] = {}
        for dtype in args.dtypes:
            runs[dtype] = lambda c=ours[dtype]: native_decode(c, 1, args.tokens)
            runs[COUNTERPARTS[dtype]] = lambda m=theirs[dtype]: llama_cpp_decode(m, args.tokens)
        rates = interleave(runs, args.rounds)
        for dtype, core in ours.items():
            name, other = f"{dtype}, {threads} threads", f"llama.cpp {COUNTERPARTS[dtype]}, {threads} threads"
            table.add(name, size, "weight MB", [core.weight_bytes / 1e6])
            table.add(name, size, "tokens/s", rates[dtype])
            table.add(other, size, "tokens/s", rates[COUNTERPARTS[dtype]])
            paired = [a / b for a, b in zip(rates[dtype], rates[COUNTERPARTS[dtype]], strict=True)]
            table.add(name, size, "times llama.cpp", paired)
            theirs[dtype].close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["20M", "320M"])
    parser.add_argument("--dtypes", nargs="+", choices=COUNTERPARTS, default=["int8"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--tokens", type=int, default=256, help="new tokens a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    if api is None or not native.is_available():
        sys.exit(missing if api is None else native.reason())
    table = new_table("cpu_llama_cpp")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            measure(args, size, table, Path(folder))
    finish(table.rows, args.out)


if __name__ == "__main__":
    main()
