"""A plain PyTorch training loop in the style of nanoGPT, with three lines of AltGrad: convert, observe, print.

    python examples/nanogpt_loop.py                          # 200 steps in FP8, watched against FP32
    python examples/nanogpt_loop.py --recipe mxfp4 --steps 50

It trains a small GPT on the bytes of Python's own modules; nothing is downloaded and no plugin or experiment file is needed.
"""

import argparse
import math
import pathlib
import sysconfig

import torch
from torch import nn
from torch.nn import functional as F

import altgrad_core as altgrad

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--recipe", default="hybrid", help="any recipe or format: hybrid, e5m2, mxfp8, mxfp4, bf16, ...")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--accumulate", type=int, default=2, help="micro-batches a step")
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--block-size", type=int, default=128)
parser.add_argument("--n-layer", type=int, default=4)
parser.add_argument("--n-embd", type=int, default=128)
parser.add_argument("--every", type=int, default=20, help="steps between measurements")
parser.add_argument("--out", help="file for the weights, which fit the model unconverted")
args = parser.parse_args()

torch.manual_seed(1337)
device = "cuda" if torch.cuda.is_available() else "cpu"
N_HEAD = 4
LEARNING_RATE = 1e-3

# -- data ----------------------------------------------------------------------------------------------------------------
sources = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
text = b"".join(path.read_bytes() for path in sources)
data = torch.frombuffer(bytearray(text), dtype=torch.uint8)


def get_batch():
    starts = torch.randint(len(data) - args.block_size - 1, (args.batch_size,))
    x = torch.stack([data[i : i + args.block_size].long() for i in starts])
    y = torch.stack([data[i + 1 : i + 1 + args.block_size].long() for i in starts])
    return x.to(device), y.to(device)


# -- model ---------------------------------------------------------------------------------------------------------------
class CausalSelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(args.n_embd, 3 * args.n_embd)
        self.c_proj = nn.Linear(args.n_embd, args.n_embd)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (z.view(b, t, N_HEAD, c // N_HEAD).transpose(1, 2) for z in self.c_attn(x).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(args.n_embd), CausalSelfAttention()
        self.ln_2 = nn.LayerNorm(args.n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(args.n_embd, 4 * args.n_embd), nn.GELU(), nn.Linear(4 * args.n_embd, args.n_embd)
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(256, args.n_embd), nn.Embedding(args.block_size, args.n_embd)
        self.h = nn.ModuleList(Block() for _ in range(args.n_layer))
        self.ln_f, self.lm_head = nn.LayerNorm(args.n_embd), nn.Linear(args.n_embd, 256, bias=False)
        self.lm_head.weight = self.wte.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


model = GPT().to(device)
model, summary = altgrad.convert(model, args.recipe)  # <- AltGrad
print(summary)
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))


def loss_of(x, y):
    logits = model(x)
    return F.cross_entropy(logits.float().view(-1, 256), y.view(-1))


# -- training ------------------------------------------------------------------------------------------------------------
with altgrad.observe(model, optimizer, every=args.every) as seen:  # <- AltGrad
    for step in range(1, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        micro_batches = [get_batch() for _ in range(args.accumulate)]
        total = 0.0
        for x, y in micro_batches:
            with torch.autocast(device, torch.bfloat16):
                loss = loss_of(x, y) / args.accumulate
            loss.backward()
            total += loss.detach()
        # Optional: the gradients against FP32, before they are clipped. It runs in the measured steps only.
        seen.shadow(lambda: sum(loss_of(x, y) / args.accumulate for x, y in micro_batches), total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if seen.measured == step:
            cosine, overflow = seen.metrics["grad_cos_sim"], seen.metrics.get("overflow_rate", 0.0)
            print(f"step {step}: loss {total:.4f}, cosine to FP32 {cosine:.4f}, overflow {100 * overflow:.2f} %")

print(seen)  # <- AltGrad: the newest measurement, layer by layer
altgrad.revert(model)
if args.out:
    torch.save(model.state_dict(), args.out)
