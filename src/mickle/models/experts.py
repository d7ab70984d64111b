"""The feed-forward network of a block: one for all tokens, or several experts of which each token takes a few.

Mixture of experts as in Mixtral (arXiv 2401.04088, section 2.1): many parameters at the cost of few, because a token
passes through k of E networks. "To Repeat or Not To Repeat" (arXiv 2305.13230) finds the dropout rate of a large
dense model on a sparse one of as many parameters. For a token x with router matrix W [E, D]::

    p = softmax(W x),   T = the k largest of p,   g_e = p_e / sum_{j in T} p_j,   y = sum_{e in T} g_e FFN_e(x)

Balance of a layer (Switch Transformer, arXiv 2101.03961, eq. 4 to 6), 1 where experts are used evenly::

    balance = E sum_e f_e P_e,   f_e = share of the chosen (token, expert) pairs at e,   P_e = mean over tokens of p_e

``router_loss`` times the sum of the layers' balances is added to the gradient of the mean loss, and not to the loss
that is reported. It needs a head that returns (sum, count), as ``cross_entropy`` does. A micro-batch's balance counts
by its loss terms; balance is no sum over tokens, so another number of micro-batches means a slightly other gradient.

Departures. No capacity: every token is served, where Switch drops those above 1.25 times an expert's even share.
Experts in every layer, as Mixtral, where Switch and "To Repeat or Not To Repeat" take every second. The router runs in
float32 under any autocast (Switch, section 2.4). No jitter, no router z-loss.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mickle.models.shape import DecoderConfig


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202, eq. 6): down(silu(gate(x)) * up(x)); or down(relu(up(x))), or with gelu."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        if config.activation == "swiglu":
            self.gate_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        if self.activation == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        activate = F.relu if self.activation == "relu" else F.gelu
        return self.down_proj(activate(self.up_proj(x)))


class Experts(nn.Module):
    """E feed-forward networks and the router that sends each token to k of them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.per_token = min(config.experts, config.experts_per_token)
        self.gate = nn.Linear(config.width, config.experts, bias=False)
        # No ModuleList: training over several processes takes the members of one for blocks to shard one by one.
        self.experts = nn.ModuleDict({str(expert): FeedForward(config) for expert in range(config.experts)})

    def forward(self, x: Tensor, documents: Tensor | None = None, balances: list[Tensor] | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D].

        The layer's balance is appended to `balances`; padding, where `documents` [B, T] are below 0, has no part in it.
        """
        flat = x.reshape(-1, x.shape[-1])  # [N, D]
        probabilities, gates, chosen = route(flat, self.gate.weight, self.per_token)
        if balances is not None and torch.is_grad_enabled():
            text = slice(None) if documents is None else documents.reshape(-1) >= 0
            balances.append(balance(probabilities[text], chosen[text]))
        return self._serve(flat, gates, chosen).reshape(x.shape)

    def _serve(self, flat: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """flat [N, D], gates and chosen [N, k] -> [N, D]: pairs sorted by expert, one pass through each expert.

        Experts without a token run too, on no rows: so every weight has a gradient at each step, and optimizers and
        sharded layers see the same set of weights always. Reading the counts makes an accelerator's host wait. Its
        sums of more than two experts' gradients may differ from run to run in the last bit.
        """
        order = chosen.flatten().argsort(stable=True)  # [N k]
        tokens = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        token = order // self.per_token
        parts = flat.index_select(0, token).split(tokens)
        served = torch.cat([expert(part) for expert, part in zip(self.experts.values(), parts, strict=True)])
        weighted = served * gates.flatten().index_select(0, order)[:, None]  # [N k, D]
        return torch.zeros_like(flat, dtype=weighted.dtype).index_add(0, token, weighted).to(served.dtype)


def route(x: Tensor, weight: Tensor, per_token: int) -> tuple[Tensor, Tensor, Tensor]:
    """Who goes where. x [N, D], router matrix `weight` [E, D] -> probabilities [N, E]; gates [N, k], which sum to 1;
    experts [N, k], best first.

    Softmax over the chosen scores is p_e / sum p_j without its rounding: one expert's gate is 1, its gradient 0.
    In float32 (float64 for float64), whatever autocast says: small differences decide, and are to survive.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        scores = F.linear(x.to(wide), weight.to(wide))  # [N, E]
    best, chosen = scores.topk(per_token, dim=-1)
    return scores.softmax(-1), best.softmax(-1), chosen


def balance(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """E sum_e f_e P_e (Switch, eq. 4) of probabilities [N, E] and chosen experts [N, k]: a scalar, 1 if all is even
    and 0 without tokens.
    """
    tokens, experts = probabilities.shape
    share = torch.bincount(chosen.flatten(), minlength=experts) / max(1, chosen.numel())
    return experts * (share * probabilities.sum(0) / max(1, tokens)).sum()


def with_balance(answer: Any, balances: list[Tensor], weight: float) -> Any:
    """A head's (sum, count) whose sum has the gradient of sum + weight * count * (sum of `balances`).

    Its value stays what it is: what is reported is the objective alone. So do logits, and all that is no such pair.
    """
    pair = isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, Tensor) for part in answer)
    if not (balances and weight and pair) or answer[0].dim() or not answer[0].requires_grad:
        return answer
    total, count = answer
    extra = weight * count * torch.stack(balances).sum()
    return total + (extra - extra.detach()).to(total.dtype), count
