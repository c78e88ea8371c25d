# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # tinygpt: a first look
#
# This notebook trains a small GPT on Shakespeare, lets it write, and then looks at what makes the training work: the
# backward pass. It takes a minute or two on two cores; no GPU is needed.
#
# tinygpt is not on PyPI. In a clone of its repository it is installed by
#
# ```sh
# pip install -e '.[examples]'
# ```
#
# In Colab, upload the wheel that `python -m build` makes (or a zip of the repository) with the folder symbol on the
# left, and run `%pip install "/content/THE_FILE[examples]"` in a cell above this one. `examples` brings Shakespeare's
# plays and the library that draws the loss curve.

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import tinygpt as tg

# %% tags=["parameters"]
STEPS = 500  # about a minute
OUT = Path("out")  # runs are saved in folders below this one

# %% [markdown]
# ## From a text to tokens
#
# The text is tinyshakespeare, or Shakespeare's plays where there is no network. Each character is a token, and a token
# is a number. The last tenth is never trained on: on it we measure how well the model does with text that it hasn't
# seen.

# %%
corpus = tg.data.shakespeare()
text = "".join(tg.data.read_text(corpus.path))[:1_100_000]
tokenizer = tg.tokenizers.CharTokenizer.from_text(text)
train, validation = tg.data.split(tokenizer.encode(text), validation_fraction=0.1)
print(corpus.description)
print(f"{len(text):,} characters, {tokenizer.vocab_size} different ones")
print(repr(text[:40]), "->", tokenizer.encode(text[:40]))

# %% [markdown]
# ## The model
#
# GPT-2's architecture, small: four blocks of attention and a perceptron, 128 channels, 64 characters of context.

# %%
config = tg.GPTConfig(tokenizer.vocab_size, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False)
model = tg.GPT(config, seed=0)
model


# %% [markdown]
# Before training, every character is about equally likely, so the loss is about the logarithm of their number, and the
# model writes noise.


# %%
def write(prompt, length, temperature=0.8):
    ids = model.generate([tokenizer.encode(prompt)], max_new_tokens=length, temperature=temperature, seed=0)
    return tokenizer.decode(ids[0])


loss = tg.training.evaluate(model, validation[:6500])
print(f"loss {loss:.2f}, log({tokenizer.vocab_size}) = {np.log(tokenizer.vocab_size):.2f}")
print(write("ROMEO:\n", 100))

# %% [markdown]
# ## Training
#
# `Trainer` draws batches, steps the optimizer, evaluates, and saves checkpoints and metrics in a folder. A **callback**
# is any function that takes a dictionary. It gets every record of the metrics: one with `step`, `loss`, `lr`,
# `grad_norm` and more every `log_every` steps, and one with `step` and `validation_loss` after each evaluation. This
# one lets the model write a line whenever it was evaluated. The button that stops a cell saves the run first.

# %%
norms = []


def watch(record):
    if "validation_loss" in record:
        print("    ", repr(write("KING", 60)))
    else:
        norms.append((record["step"], record["grad_norm"]))


settings = tg.TrainingConfig(
    steps=STEPS, batch_size=12, optimizer="muon", weight_decay=0.0, warmup_steps=10, eval_every=STEPS // 5
)
folder = OUT / time.strftime("quickstart-%Y%m%d-%H%M%S")
trainer = tg.Trainer(model, train, validation, settings, folder, callbacks=[watch], tokenizer=tokenizer)
result = trainer.run()
result

# %%
print(result.summary())
trainer.load_best()
print(f"Loss over the whole validation text: {tg.training.evaluate(model, validation, progress=True):.3f}")

# %% [markdown]
# ## What it has learnt
#
# `temperature` divides the scores before they become probabilities: near 0 the model takes the likeliest character
# every time and repeats itself, above 1 it takes more risks.

# %%
for temperature in (0.2, 0.8, 1.2):
    print(f"--- temperature {temperature}")
    print(write("ROMEO:\n", 150, temperature), end="\n\n")

# %% [markdown]
# The folder is a model. `tinygpt sample --model FOLDER` lets it write on the command line, and this loads it again:

# %%
model = tg.GPT.from_pretrained(folder)
print(*sorted(path.name for path in folder.iterdir()), sep="\n")

# %% [markdown]
# ## A backward pass
#
# Training needs one thing of a model: in which direction to change each weight so that the loss gets smaller.
# `backward` walks back from the loss through every operation that led to it, and leaves a gradient in each parameter.
# It is a plain NumPy array, of the parameter's shape.

# %%
inputs, targets = tg.data.RandomBatches(train, batch_size=12, block_size=64, seed=1).batch(0)
loss = model.loss(inputs, targets)
loss.backward()
weight = model.h[0].attn.c_attn.weight
print(loss)
print(type(weight.grad), weight.grad.shape)

# %%
sizes = {name: float(np.linalg.norm(parameter.grad)) for name, parameter in model.named_parameters()}
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
left.plot(*zip(*norms, strict=True))
left.set(title="Norm of the gradient during training", xlabel="step")
right.barh(list(sizes), list(sizes.values()))
right.invert_yaxis()
right.set(title="Norm of each parameter's gradient, for one batch")
plt.show()
model.zero_grad()

# %% [markdown]
# Is the gradient right? Nudge one weight, and see how the loss changes. In float64, so that rounding doesn't blur it:

# %%
small = tg.GPT(tg.GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16), seed=0, dtype="float64")
inputs, targets = np.arange(8)[None] % 11, np.arange(1, 9)[None] % 11
small.loss(inputs, targets).backward()
weight, place, h = small.h[1].mlp.c_fc.weight, (3, 5), 1e-5
around = []
for step in (h, -h):
    weight.data[place] += step
    around.append(small.loss(inputs, targets).item())
    weight.data[place] -= step
print("by backward:        ", weight.grad[place])
print("by nudging a weight:", (around[0] - around[1]) / (2 * h))


# %% [markdown]
# `check_gradients` does this for any function of tensors, along random directions, and raises an error where the two
# differ. Here is an operation of our own, with a mistake in its backward pass:


# %%
class Square(tg.Function):
    def forward(self, x):
        self.save(x)
        return x * x

    def backward(self, dy):
        (x,) = self.saved
        return dy * x  # the right one is dy * 2 * x


x = np.random.default_rng(0).standard_normal((3, 4))
tg.testing.check_gradients(lambda x: tg.ops.gelu(x).sum(), x)
print("gelu is right")
try:
    tg.testing.check_gradients(Square.apply, x)
except tg.testing.GradientError as error:
    print(error)

# %% [markdown]
# `backward_by_hand.ipynb`, beside this notebook, takes one operation apart: formula, derivation, code, check. In the
# package every operation is one such file, in `tinygpt/ops/`.
