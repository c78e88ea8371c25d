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
# # A backward pass by hand: layer normalisation
#
# One operation, taken apart: the formula, the derivation of its gradient, both in NumPy, and three checks: numbers,
# tinygpt, PyTorch. It takes seconds. How to install tinygpt is in `quickstart.ipynb`.
#
# Layer normalisation (Ba, Kiros, Hinton 2016) stands before each attention and each perceptron of a GPT. Its backward
# pass is the first one that is not obvious, because each output depends on every input of its row.

# %%
import numpy as np

import tinygpt as tg

rng = np.random.default_rng(0)

# %% [markdown]
# ## The formula
#
# A row $x$ of $C$ numbers is shifted to mean 0 and scaled to variance 1. Then it is multiplied by a learned weight $w$,
# and a learned bias $b$ is added:
#
# $$\mu = \frac1C \sum_i x_i \qquad
# \sigma^2 = \frac1C \sum_i (x_i - \mu)^2 \qquad
# r = \frac{1}{\sqrt{\sigma^2 + \varepsilon}}$$
#
# $$n_i = (x_i - \mu)\, r \qquad y_i = w_i\, n_i + b_i$$
#
# $\varepsilon$ is small, and keeps $r$ finite where all $x_i$ are equal. In code, for $N$ rows at once:


# %%
def forward(x, w, b, eps=1e-5):
    """x (N, C), w (C,), b (C,) -> y (N, C), and what the backward pass needs."""
    mean = x.mean(axis=1, keepdims=True)  # (N, 1)
    r = 1 / np.sqrt(x.var(axis=1, keepdims=True) + eps)  # (N, 1)
    n = (x - mean) * r  # (N, C)
    return w * n + b, (n, r, w)


# %%
N, C = 4, 6
x, w, b = 3 + 2 * rng.standard_normal((N, C)), rng.standard_normal(C), rng.standard_normal(C)
y, saved = forward(x, w, b)
print("mean and variance of each normalised row:")
print(saved[0].mean(axis=1).round(12), saved[0].var(axis=1).round(4))

# %% [markdown]
# ## What a backward pass gets and gives
#
# Somewhere further on there is a loss $L$, one number. The operations behind this one have already worked out $dy_i =
# \partial L / \partial y_i$. From that we owe the same for everything that we were given: $dx_i = \partial L / \partial
# x_i$, and $dw$ and $db$. The only tool is the chain rule: add up over all ways in which an input has an influence on
# $L$.
#
# ## The easy part: weight and bias
#
# $b_i$ acts on column $i$ alone, with factor 1, and $w_i$ with factor $n_i$. All rows share them, so we sum over the
# rows:
#
# $$db_i = \sum_{\text{rows}} dy_i \qquad dw_i = \sum_{\text{rows}} dy_i\, n_i \qquad dn_i = dy_i\, w_i$$
#
# The last one is the gradient of the normalised row, with which we go on.
#
# ## The row
#
# $x_j$ has an influence on $n_i$ in three ways: directly if $i = j$, through the mean, and through $r$. One after the
# other:
#
# $$\frac{\partial \mu}{\partial x_j} = \frac1C \qquad\qquad
# \frac{\partial \sigma^2}{\partial x_j} = \frac2C (x_j - \mu)$$
#
# For the variance, the mean's own change drops out, because $\sum_i (x_i - \mu) = 0$. With that,
#
# $$\frac{\partial r}{\partial x_j} = -\frac12 (\sigma^2 + \varepsilon)^{-3/2}\, \frac2C (x_j - \mu)
# = -\frac{r^3}{C} (x_j - \mu) = -\frac{r^2}{C}\, n_j$$
#
# and by the product rule on $n_i = (x_i - \mu)\, r$:
#
# $$\frac{\partial n_i}{\partial x_j}
# = \Big(\delta_{ij} - \frac1C\Big)\, r + (x_i - \mu) \Big(-\frac{r^2}{C}\, n_j\Big)
# = r \Big(\delta_{ij} - \frac1C - \frac{n_i\, n_j}{C}\Big)$$
#
# Now multiply by $dn_i$ and add up over $i$:
#
# $$dx_j = r \Big( dn_j - \underbrace{\frac1C \sum_i dn_i}_{\text{shift}}
# - n_j \underbrace{\frac1C \sum_i dn_i\, n_i}_{\text{stretch}} \Big)$$
#
# In words: normalisation undoes any shift and any stretch of the row, so neither can change the loss. What would shift
# the row, and what would stretch it, is therefore taken out of the gradient.
#
# Two things to notice. The $C \times C$ matrix $\partial n_i / \partial x_j$ never has to be made: two means per row
# are enough. And all that we need of the forward pass is $n$, $r$ and $w$: $x$ itself doesn't occur.


# %%
def backward(dy, saved):
    """dy (N, C) -> dx (N, C), dw (C,), db (C,)."""
    n, r, w = saved
    db = dy.sum(axis=0)  # (C,)
    dw = (dy * n).sum(axis=0)  # (C,)
    dn = dy * w  # (N, C)
    shift = dn.mean(axis=1, keepdims=True)  # (N, 1)
    stretch = (dn * n).mean(axis=1, keepdims=True)  # (N, 1)
    dx = r * (dn - shift - n * stretch)  # (N, C)
    return dx, dw, db


# %% [markdown]
# ## Check 1: numbers
#
# The slope of $L = \sum dy \cdot y$ along each input, from two forward passes a small step $h$ apart. The error of this
# quotient shrinks with $h^2$, and that of rounding grows with $1/h$; in float64, $h = 10^{-5}$ is about the best of
# both.
#
# $dy$ is **random, and never all ones**. The sum of a normalised row is always 0, so against ones the true gradient of
# $x$ is 0 (if all weights are equal), and a backward pass that is wrong by any factor would pass.


# %%
def slopes(function, array, dy, h=1e-5):
    """dL/d array by differences, element by element. function() uses the array."""
    result = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        value = array[place]
        array[place] = value + h
        above = (function() * dy).sum()
        array[place] = value - h
        below = (function() * dy).sum()
        array[place] = value
        result[place] = (above - below) / (2 * h)
    return result


dy = rng.standard_normal((N, C))
dx, dw, db = backward(dy, saved)
for name, array, gradient in (("x", x, dx), ("w", w, dw), ("b", b, db)):
    difference = np.abs(slopes(lambda: forward(x, w, b)[0], array, dy) - gradient).max()
    print(f"d{name}: the largest difference is {difference:.1e}")
    assert difference < 1e-8

# %% [markdown]
# What the words above say can be seen in the numbers: $dx$ has no part left that shifts the row, and (up to
# $\varepsilon$) none that stretches it.

# %%
print("shift:  ", dx.sum(axis=1).round(12))
print("stretch:", (dx * saved[0]).sum(axis=1).round(4))
assert np.allclose(dx.sum(axis=1), 0)

# %% [markdown]
# ## Check 2: tinygpt
#
# `tg.ops.layer_norm` has the same derivation on top of its file, `tinygpt/ops/layer_norm.py`, and beside the NumPy code
# a body in Cython and one in CUDA.

# %%
tensors = [tg.tensor(array, requires_grad=True) for array in (x, w, b)]
tg.ops.layer_norm(*tensors).backward(dy)
for name, tensor, gradient in zip("xwb", tensors, (dx, dw, db), strict=True):
    print(f"d{name}: the largest difference is {np.abs(tensor.grad - gradient).max():.1e}")
    assert np.allclose(tensor.grad, gradient, rtol=1e-10, atol=1e-12)


# %% [markdown]
# Our own code becomes an operation of tinygpt by a `Function`: `forward` saves, `backward` uses what was saved. It then
# works in any model, and `check_gradients` checks it along random directions.


# %%
class LayerNorm(tg.Function):
    def forward(self, x, w, b):
        y, saved = forward(x, w, b)
        self.save(*saved)
        return y

    def backward(self, dy):
        return backward(dy, self.saved)


tg.testing.check_gradients(LayerNorm.apply, x, w, b)
print("our backward pass agrees with differences of our forward pass")


# %% [markdown]
# And a check that can fail: leave out the stretch, which is small where a row has many elements, and easily forgotten.


# %%
class Forgetful(LayerNorm):
    def backward(self, dy):
        n, r, w = self.saved
        dn = dy * w
        return r * (dn - dn.mean(axis=1, keepdims=True)), (dy * n).sum(axis=0), dy.sum(axis=0)


try:
    tg.testing.check_gradients(Forgetful.apply, x, w, b)
except tg.testing.GradientError as error:
    print(error)
else:
    raise AssertionError("the mistake was not noticed")

# %% [markdown]
# ## Check 3: PyTorch, if it is installed

# %%
try:
    import torch
except ImportError:
    print("PyTorch is not installed")
else:
    others = [torch.tensor(array, requires_grad=True) for array in (x, w, b)]
    torch.nn.functional.layer_norm(others[0], (C,), others[1], others[2]).backward(torch.tensor(dy))
    for name, other, gradient in zip("xwb", others, (dx, dw, db), strict=True):
        print(f"d{name}: the largest difference is {np.abs(other.grad.numpy() - gradient).max():.1e}")
        assert np.allclose(other.grad.numpy(), gradient, rtol=1e-10, atol=1e-12)

# %% [markdown]
# ## What the package does beyond this
#
# - It saves $x$, $\mu$ and $r$ instead of $n$: $n$ is as large as $x$, which is in memory anyway, and making it again
#   takes one subtraction and one multiplication.
# - Means and sums over many numbers are taken in float64, so that float32 rows with a large mean stay exact.
# - The loops over rows are compiled, and run on all cores.
#
# Read on in `tinygpt/ops/layer_norm.py`; then `softmax.py`, `gelu.py` and `attention.py` in the same folder.
