"""Saliency: how much each token of a text contributes to the probability of a chosen next token.

Let x_t (C,) be the embedding of token t and F(x) the log-probability of the target after the text. Two ways to
attribute F to the tokens, each with one number per token, which is positive if the token supports the target:

    gradient_x_input          s_t = x_t . dF/dx_t
    integrated_gradients      s_t = (x_t - x'_t) . integral over a in 0 .. 1 of dF/dx_t at x' + a (x - x')

The gradient describes the effect of a small change, so it is near zero where F is flat, even if the token matters. The
integral goes from an uninformative baseline x' (embeddings of zeros) to x, and by the chain rule it is complete: the
numbers of all tokens add up to F(x) - F(x'). Position embeddings are the same in both.

The integral is computed by Gauss-Legendre quadrature, which is exact for polynomials of degree 2 steps - 1. If the sum
differs from F(x) - F(x') by more than 5 %, a warning says so: take more steps.

Source: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", 2017, section 3 (method, completeness) and 5
(number of steps); Shrikumar et al., "Not Just a Black Box", 2016 (gradient x input).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from .. import ops
from ..backends import array_module
from ..backends.precision import upcast
from ..checks import whole_number
from ..errors import RangeError, UsageError
from ..language_model import LanguageModel
from ..tensor import Tensor
from ..typing import Ids
from .hooks import hooked
from .text import AnyModel, body_of, frozen, host, nearest, one_text

METHODS = ("gradient_x_input", "integrated_gradients")
_AT_ONCE = 8  # points of the integral in one batch
_MISSED = 0.05


def saliency(
    model: AnyModel,
    ids: Ids,
    target: int,
    method: str = "gradient_x_input",
    *,
    steps: int = 64,
    logit: bool = False,
) -> np.ndarray:
    """ids (T,), target: an id, the next token to explain -> (T,): what each token contributes to its log-probability.

    For a classifier, target is a label; for a regression or several labels at once, the output itself is explained.
    method: "gradient_x_input" or "integrated_gradients", whose integral takes `steps` points, and as many passes.
    logit: explain the logit instead of the log-probability.
    Raises UsageError for an unknown method, RangeError for a target out of range; for ids as the model does.
    """
    idx = one_text("saliency", model, ids)
    if method not in METHODS:
        raise UsageError(f"saliency: there is no method {method!r}: {nearest(method, METHODS)}")
    steps, target = whole_number("saliency", "steps", steps), _checked_target(model, target)
    explained = _Explained(model, idx, target, logit)
    if method == "gradient_x_input":
        _, gradients = explained.at([1.0])
        return host((gradients[0] * explained.embeddings).sum(axis=-1))  # (T,)
    return explained.integrated(steps)


def _checked_target(model: Any, target: Any) -> int:
    target = whole_number("saliency", "target", target, at_least=0)
    count = model.config.vocab_size if isinstance(model, LanguageModel) else model.num_labels
    if target >= count:
        raise RangeError(f"saliency: target must be in 0 .. {count - 1}, not {target}")
    return target


class _Explained:
    """F and its gradient, as functions of the token embeddings."""

    def __init__(self, model: Any, idx: Any, target: int, logit: bool) -> None:
        self.model, self.idx, self.target = model, idx, target
        body, prefix = body_of("saliency", model)
        self.place = f"{prefix}wte"
        self.normalised = not logit and getattr(model, "problem_type", None) in (None, "single_label_classification")
        self.embeddings = upcast(body.wte(idx).data[0])  # (T, C)

    def at(self, factors: list[float]) -> tuple[np.ndarray, Any]:
        """F (A,) and dF/dx (A, T, C) with the embeddings times each of these A factors."""
        xp, (T, C) = array_module(self.embeddings), self.embeddings.shape
        leaf = Tensor(xp.empty((len(factors), T, C), self.embeddings.dtype), requires_grad=True)
        for a, factor in enumerate(factors):
            leaf.data[a] = self.embeddings * factor
        idx = array_module(self.idx).repeat(self.idx, len(factors), axis=0)  # (A, T)
        with frozen(self.model), hooked(self.model, {self.place: lambda x: ops.cast(leaf, x.dtype)}):
            score = self._score(idx)  # (A,)
            score.backward(xp.ones(score.shape, score.dtype))
        return host(score.data), leaf.grad

    def _score(self, idx: Any) -> Tensor:
        """F (A,) of the next token, or of a classifier's label."""
        logits = self.model.next_logits(idx) if isinstance(self.model, LanguageModel) else self.model(idx)  # (A, V)
        logits = ops.cast(logits, "float64" if logits.dtype == np.float64 else "float32")
        return (ops.log_softmax(logits) if self.normalised and logits.shape[1] > 1 else logits)[:, self.target]

    def integrated(self, steps: int) -> np.ndarray:
        """(T,): the integral of the gradient from embeddings of zeros, times the embeddings."""
        points, weights = np.polynomial.legendre.leggauss(steps)  # on -1 .. 1
        points, weights = (points + 1) / 2, weights / 2
        total = np.zeros(len(self.embeddings), np.float64)  # (T,)
        for start in range(0, steps, _AT_ONCE):
            chosen = slice(start, start + _AT_ONCE)
            _, gradients = self.at(points[chosen].tolist())  # (A, T, C)
            total += weights[chosen] @ host((gradients * self.embeddings).sum(axis=-1)).astype(np.float64)
        (at_zero, at_text), _ = self.at([0.0, 1.0])
        difference, found = float(at_text - at_zero), float(total.sum())
        if abs(found - difference) > _MISSED * abs(difference):
            warnings.warn(
                f"saliency: with {steps} steps the integrated gradients add up to {found:.4g}, not to the difference "
                f"{difference:.4g}: take more steps",
                stacklevel=3,
            )
        return total.astype(self.embeddings.dtype)
