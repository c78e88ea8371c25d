"""Autograd in one page: a whole engine, then a network trained with it, beside tinygpt's.

    python examples/autograd_in_one_page.py

A `Value` is an array that remembers which values it was computed from and, for each of them, a rule that turns dL/dy
into dL/dx. `backward` walks back from L: a value is visited after everything that was computed from it, so that its
gradient is complete when its own rules are applied. The tests compare its gradients with tinygpt's on random graphs.
"""

from __future__ import annotations

import numpy as np


class Value:
    """An array, the values it came from, and a rule for each: dy -> the gradient that this use adds to it."""

    def __init__(self, data, parents=(), rules=()):
        self.data, self.parents, self.rules, self.grad = np.asarray(data, float), parents, rules, None

    def backward(self, dy=1.0):
        order, seen, waiting = [], set(), [(self, iter(self.parents))]
        while waiting:  # depth first: a value enters the list after all that it came from
            value, parents = waiting[-1]
            parent = next((p for p in parents if p not in seen), None)
            if parent is None:
                order.append(waiting.pop()[0])
            else:
                seen.add(parent)
                waiting.append((parent, iter(parent.parents)))
        grads = {self: np.broadcast_to(np.asarray(dy, float), self.data.shape)}
        for value in reversed(order):
            dy = grads.pop(value)
            if not value.parents:
                value.grad = dy if value.grad is None else value.grad + dy
            for parent, rule in zip(value.parents, value.rules, strict=True):
                grads[parent] = grads.get(parent, 0) + rule(dy)

    def __add__(self, other):
        a, b = self, lift(other)
        return Value(a.data + b.data, (a, b), (lambda dy: unbroadcast(dy, a), lambda dy: unbroadcast(dy, b)))

    def __mul__(self, other):
        a, b = self, lift(other)
        rules = (lambda dy: unbroadcast(dy * b.data, a), lambda dy: unbroadcast(dy * a.data, b))
        return Value(a.data * b.data, (a, b), rules)

    def __matmul__(self, b):
        a, turn = self, lambda x: np.swapaxes(x.data, -1, -2)
        return Value(
            a.data @ b.data, (a, b), (lambda dy: unbroadcast(dy @ turn(b), a), lambda dy: unbroadcast(turn(a) @ dy, b))
        )

    def __pow__(self, n):
        return Value(self.data**n, (self,), (lambda dy: dy * n * self.data ** (n - 1),))

    def __getitem__(self, key):
        def rule(dy):
            dx = np.zeros_like(self.data)
            np.add.at(dx, key, dy)  # an element that was picked twice gets both gradients
            return dx

        return Value(self.data[key], (self,), (rule,))

    def exp(self):
        y = np.exp(self.data)
        return Value(y, (self,), (lambda dy: dy * y,))

    def log(self):
        return Value(np.log(self.data), (self,), (lambda dy: dy / self.data,))

    def tanh(self):
        y = np.tanh(self.data)
        return Value(y, (self,), (lambda dy: dy * (1 - y * y),))

    def relu(self):
        return Value(np.maximum(self.data, 0), (self,), (lambda dy: dy * (self.data > 0),))

    def sum(self, axis=None):
        kept = self.data.sum(axis, keepdims=True).shape
        return Value(self.data.sum(axis), (self,), (lambda dy: np.broadcast_to(dy.reshape(kept), self.data.shape),))

    def reshape(self, *shape):
        return Value(self.data.reshape(*shape), (self,), (lambda dy: dy.reshape(self.data.shape),))

    def transpose(self, *axes):
        return Value(self.data.transpose(*axes), (self,), (lambda dy: dy.transpose(np.argsort(axes)),))


def lift(x):
    return x if isinstance(x, Value) else Value(x)


def unbroadcast(dy, x):
    """The sum of dy over the axes along which broadcasting repeated x: each copy was a use of it."""
    dy = dy.sum(axis=tuple(range(dy.ndim - x.data.ndim)))
    return dy.sum(axis=tuple(i for i, size in enumerate(x.data.shape) if size == 1), keepdims=True)


# The engine ends here. Below: exclusive or, learnt by two layers; the same code runs on tinygpt's tensors.


def loss_of(x, wanted, weights):
    """The mean squared error of a network with one hidden layer of eight."""
    first, first_bias, second, second_bias = weights
    y = (x @ first + first_bias).tanh() @ second + second_bias
    return ((y + -1.0 * wanted) ** 2).sum() * 0.25


def main():
    import tinygpt as tg

    rng = np.random.default_rng(0)
    x, wanted = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), np.array([[0.0], [1], [1], [0]])
    arrays = [rng.standard_normal(shape) for shape in ((2, 8), (8,), (8, 1), (1,))]

    weights = [Value(array) for array in arrays]
    loss_of(Value(x), wanted, weights).backward()
    theirs = [tg.tensor(array.copy(), requires_grad=True) for array in arrays]
    loss_of(tg.tensor(x), wanted, theirs).backward()
    worst = max(np.abs(a.grad - b.grad).max() for a, b in zip(weights, theirs, strict=True))
    print(f"one page and tinygpt: gradients differ by at most {worst:.0e}")

    for step in range(301):
        for weight in weights:
            weight.grad = None
        loss = loss_of(Value(x), wanted, weights)
        loss.backward()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.data:.6f}")
        for weight in weights:
            weight.data = weight.data - 0.1 * weight.grad


if __name__ == "__main__":
    main()
