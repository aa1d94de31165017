"""Logits of one decoder layer of the 13B shape on a GPU, as this library and as transformers in fp16 compute them,
against an evaluation in fp64. For a machine with PyTorch and transformers; exits with 1 if the library's error is above
that of transformers.

    guanaco-synth --shape 13b --layers 1 --vocab 512 --no-tokenizer FOLDER
    GUANACO_LIBRARY=libguanaco.so.1 PYTHONPATH=examples/python python3 tests/accuracy.py FOLDER
"""
import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file

from guanaco import Device, Model, Session

ROWS = 64


def unpack(words, axis):
    """The 4-bit codes of int32 words, along an axis, lowest first."""
    shifts = torch.arange(0, 32, 4, device=words.device)
    words = words.unsqueeze(axis + 1)
    return (words >> shifts.view([-1 if i == axis + 1 else 1 for i in range(words.dim())]) & 15).flatten(axis, axis + 1)


def weights(tensors):
    """All weights in fp64: of linears [outputs, inputs], exactly what the file means (zero points of version 1)."""
    plain = {name: value.double() for name, value in tensors.items() if value.is_floating_point() and ".scales" not in name}
    for name in [name for name in tensors if name.endswith(".qweight")]:
        part = name.removesuffix(".qweight")
        codes = unpack(tensors[name], 0)
        zeros = unpack(tensors[part + ".qzeros"] + 0x11111111, 1)  # stored minus one, borrowed through whole words
        group = tensors[part + ".g_idx"].long()
        plain[part + ".weight"] = (tensors[part + ".scales"].double()[group] * (codes - zeros[group])).T.contiguous()
    return plain


def forward(w, tokens, heads, epsilon):
    """The forward pass in fp64, for one layer; all positions."""
    def norm(x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * w[name]

    layer = "model.layers.0."
    x = w["model.embed_tokens.weight"][tokens]
    rows, hidden = x.shape
    half = hidden // heads // 2
    angles = torch.arange(rows, device=x.device).double()[:, None] / 10000 ** (
        torch.arange(half, device=x.device).double() / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    def rotate(y):
        a, b = y[..., :half], y[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    h = norm(x, layer + "input_layernorm.weight")
    q, k, v = ((h @ w[layer + f"self_attn.{part}_proj.weight"].T).view(rows, heads, -1) for part in "qkv")
    scores = torch.einsum("qhd,khd->hqk", rotate(q), rotate(k)) / (2 * half) ** 0.5
    scores += torch.full((rows, rows), float("-inf"), device=x.device).triu(1)
    attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(rows, hidden)
    x = x + attended @ w[layer + "self_attn.o_proj.weight"].T
    h = norm(x, layer + "post_attention_layernorm.weight")
    gate, up = (h @ w[layer + f"mlp.{part}_proj.weight"].T for part in ("gate", "up"))
    x = x + (torch.nn.functional.silu(gate) * up) @ w[layer + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def of_transformers(w, config, tokens):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=config["vocab_size"], hidden_size=config["hidden_size"], num_hidden_layers=1,
        intermediate_size=config["intermediate_size"], num_attention_heads=config["num_attention_heads"],
        max_position_embeddings=config["max_position_embeddings"], rms_norm_eps=config["rms_norm_eps"])).half().cuda()
    missing, unexpected = model.load_state_dict({name: value.half() for name, value in w.items()}, strict=False)
    assert not unexpected and not [name for name in missing if "inv_freq" not in name], (missing, unexpected)
    with torch.no_grad():
        return model(tokens[None]).logits[0]


def of_library(folder, tokens, rows):
    """Logits after every `rows` tokens, fed in as many at a time; {position: logits}."""
    with Model(folder, device=Device.CUDA) as model, Session(model, context=len(tokens)) as session:
        found = {}
        for first in range(0, len(tokens), rows):
            session.feed(tokens[first:first + rows])
            found[session.position - 1] = torch.tensor(session.logits, dtype=torch.float64)
        return found


def main(folder):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    w = weights(load_file(next(folder.glob("*.safetensors")), device="cuda"))
    tokens = torch.randint(3, config["vocab_size"], (ROWS,), generator=torch.Generator().manual_seed(1)).cuda()
    exact = forward(w, tokens, config["num_attention_heads"], config["rms_norm_eps"]).cpu()

    def report(name, found):
        errors = [((y - exact[at]).norm() / exact[at].norm()).item() for at, y in found.items()]
        print(f"{name}: relative error of logits, mean {sum(errors) / len(errors):.2e}, most {max(errors):.2e}")
        return sum(errors) / len(errors)

    theirs = report("transformers, fp16", dict(enumerate(of_transformers(w, config, tokens).double().cpu())))
    ours = [report(f"guanaco, {rows} rows a pass", of_library(folder, tokens.tolist(), rows)) for rows in (1, 8, ROWS)]
    return not all(error <= theirs for error in ours)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
