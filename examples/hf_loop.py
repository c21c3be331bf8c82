"""A Hugging Face model in a low-precision format: with a loop of your own, or with transformers' Trainer.

    pip install transformers                                  # and accelerate for --trainer
    python examples/hf_loop.py                                # GPT-2's architecture, small, freshly drawn weights
    python examples/hf_loop.py --model bert --recipe mxfp8
    python examples/hf_loop.py --trainer

Nothing is downloaded. For a checkpoint of yours replace ``build()`` by ``AutoModelForCausalLM.from_pretrained(...)``.
"""

import argparse
import tempfile

import torch
import transformers

import altgrad_core as altgrad

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", choices=["gpt2", "llama", "bert"], default="gpt2")
parser.add_argument("--recipe", default="hybrid", help="any recipe or format: hybrid, e5m2, mxfp8, mxfp4, bf16, ...")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--every", type=int, default=20, help="steps between measurements")
parser.add_argument("--trainer", action="store_true", help="let transformers.Trainer do the loop")
args = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
VOCABULARY, LENGTH, BATCH = 128, 64, 8


def build():
    size = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    width = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    if args.model == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, **size)
        )
    if args.model == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(max_position_embeddings=LENGTH, num_key_value_heads=2, **width, **size)
        )
    return transformers.BertForMaskedLM(
        transformers.BertConfig(max_position_embeddings=LENGTH, vocab_size=VOCABULARY, pad_token_id=0, **width)
    )


def samples(count):
    """Sequences that count up in steps of 1 to 7: something to learn without a data set."""
    start, stride = torch.randint(VOCABULARY, (count, 1)), torch.randint(1, 8, (count, 1))
    return (start + stride * torch.arange(LENGTH)) % VOCABULARY


model = build().to(device)
model, summary = altgrad.convert(model, args.recipe)  # <- AltGrad
print(summary)

if args.trainer:
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=args.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=2e-3,
            bf16=True,
            use_cpu=device == "cpu",
            save_strategy="no",
            report_to=[],
            logging_steps=args.every,
        ),
        train_dataset=[{"input_ids": sample, "labels": sample} for sample in samples(BATCH * args.steps)],
    )
    trainer.create_optimizer()
    with altgrad.observe(model, trainer.optimizer, every=args.every) as seen:  # <- AltGrad
        trainer.train()
else:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    with altgrad.observe(model, optimizer, every=args.every) as seen:  # <- AltGrad
        for step in range(1, args.steps + 1):
            tokens = samples(BATCH).to(device)
            with torch.autocast(device, torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            # Optional: the gradients against FP32. It runs in the measured steps only.
            seen.shadow(lambda: model(input_ids=tokens, labels=tokens).loss, loss)
            optimizer.step()
            optimizer.zero_grad()
            if seen.measured == step:
                print(f"step {step}: loss {loss:.4f}, cosine to FP32 {seen.metrics['grad_cos_sim']:.4f}")

print(seen)  # <- AltGrad: the newest measurement, layer by layer
altgrad.revert(model)  # a plain transformers model again: save_pretrained() and all
