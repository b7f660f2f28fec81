"""Networks at the edges of what can be traced: turned rightly all the way, or refused by name."""

import pytest
import torch
import torch.nn.functional as F
from own_networks import SHAPE, conv_bn, trained
from test_random_modules import everything_holds
from torch import nn

from stars_deploy.errors import InputError
from stars_deploy.networks.tracing.trace import trace


class Net(nn.Module):
    """Blocks a (2 to 2 channels), b (2 to 4), c, d (4 to 4), and an expression over them."""

    def __init__(self, expression):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            conv_bn(2, 2), conv_bn(2, 4), conv_bn(4, 4), conv_bn(4, 4),
        )  # fmt: skip
        self.four, self.eight = nn.Linear(4, 3), nn.Linear(8, 3)
        self.expression = expression

    def forward(self, x):
        return self.expression(self, x)

    def end(self, x):
        """Logits of a map of 4 channels."""
        return self.four(x.mean((2, 3)))

    def rest(self, x):
        """Logits of a map of 2 channels."""
        return self.end(F.relu(self.b(x)))


def side(net, *maps):
    return net.end(F.relu(net.c(F.relu(torch.cat(maps, 1)))))


def above(net, z):
    """z is a pre-activation: a ReLU and adds read it."""
    return net.end(F.relu(net.c(F.relu(z)) + F.relu(net.d(F.relu(z))) + z))


def through(expression):
    return lambda net, x: expression(net, net.b(x))


FINE = {
    "the image and spikes": lambda n, x: n.rest(x + F.relu(n.a(x))),
    "the image and spikes, then ReLU": lambda n, x: n.rest(F.relu(F.relu(n.a(x)) + x)),
    "the image and spikes, pooled": lambda n, x: n.rest(
        F.avg_pool2d(x, 2) + F.avg_pool2d(F.relu(n.a(x)), 2)
    ),
    "sum of a list": lambda n, x: n.rest(sum([F.relu(n.a(x)), F.relu6(n.a(x))])),
    "one value side by side with itself": lambda n, x: (lambda z: side(n, z, z))(n.a(x)),
    "a ReLU of what is never negative": through(
        lambda n, z: (lambda p: n.end(F.relu(n.d(F.relu(p)) + p)))(F.max_pool2d(F.relu(z), 2))
    ),
    "a pre-activation and its ReLU": through(
        lambda n, z: n.end(F.relu(n.c(F.relu(F.relu(z) + z))))
    ),
    "a membrane shortcut beside spikes": through(above),
    "two ReLUs of one value": through(lambda n, z: n.end(F.relu(n.c(F.relu(z) + F.relu6(z))))),
    "spikes and padded spikes": lambda n, x: n.end(
        F.relu(n.b(x)) + F.pad(F.relu(n.a(x)), (0, 0, 0, 0, 1, 1))
    ),
    "spikes and padded spikes, read by a convolution": lambda n, x: n.end(
        F.relu(n.c(F.relu(n.b(x)) + F.pad(F.relu(n.a(x)), (0, 0, 0, 0, 1, 1))))
    ),
    "spikes and a sum": through(
        lambda n, z: (
            lambda s: n.end(F.relu(n.d(s + F.relu(n.c(F.relu(s))))) + s)
        )(n.c(F.relu(z)) + F.relu(z))
    ),
    "three that are added in pairs": through(
        lambda n, z: (
            lambda p, q, r: n.end(F.relu(n.c(p + r) + n.d(q + r)))
        )(F.relu(z), F.relu(n.c(z)), F.relu(n.d(z)))
    ),
    "an upper bound of a ReLU": lambda n, x: n.rest(F.relu(n.a(x)).clamp(max=2)),
    "no upper bound": lambda n, x: n.rest(n.a(x).clamp(0, float("inf"))),
    "arguments by keyword": lambda n, x: n.rest(
        F.dropout(input=torch.clamp(input=n.a(x), min=0), training=n.training)
    ),
    "what is not returned": lambda n, x: (
        n.four(torch.sigmoid(n.c(F.relu(n.b(x)))).mean((2, 3))),
        n.rest(F.relu(n.a(x))),
    )[1],
    "flat values side by side": through(
        lambda n, z: n.eight(torch.cat([F.relu(z).mean((2, 3)), F.relu(n.c(z)).mean((2, 3))], -1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FINE)
def test_odd_wirings_are_turned_rightly(case):
    everything_holds(trained(lambda: Net(FINE[case])), SHAPE)


def tied():
    """One convolution and one BatchNorm at two places."""
    conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    norm = nn.BatchNorm2d(2)
    return nn.Sequential(conv, norm, nn.ReLU(), conv, norm, nn.ReLU(), *HEAD)


HEAD = (nn.Flatten(), nn.Linear(128, 3))
MODULES = {
    "tied": tied,
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3, padding=1)),
        nn.BatchNorm2d(2), nn.ReLU(), *HEAD,
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 3, padding=1)),
        nn.BatchNorm2d(2), nn.ReLU(), *HEAD,
    ),
    "of several GPUs": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(conv_bn(2, 2), nn.ReLU(), *HEAD)
    ).eval(),
}  # fmt: skip


@pytest.mark.parametrize("case", MODULES)
def test_layers_of_other_kinds(case):
    torch.manual_seed(0)
    everything_holds(MODULES[case]().eval(), SHAPE)


def test_hundreds_of_layers():
    layers = [layer for _ in range(400) for layer in (conv_bn(2, 2, 1), nn.ReLU())]
    traced = trace(nn.Sequential(*layers, *HEAD), SHAPE)
    assert len(traced.network.neurons) == 400


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(dim=-1)])
def test_a_softmax_at_the_end_is_left_out(last):
    torch.manual_seed(0)
    bare = nn.Sequential(conv_bn(2, 2), nn.ReLU(), *HEAD).eval()
    traced = trace(nn.Sequential(bare, last), SHAPE)
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(traced.network(x), bare(x), rtol=1e-5, atol=1e-6)
    assert any("left out" in note for note in traced.notes)


def hooked():
    net = nn.Sequential(conv_bn(2, 2), nn.ReLU(), *HEAD)
    net.register_forward_hook(lambda module, inputs, output: output * 2)
    return net


class Doubled(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x) * 2


def spoilt():
    net = nn.Sequential(conv_bn(2, 2), nn.ReLU(), *HEAD)
    net[0][1].running_var.fill_(-1)
    return net


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (spoilt, "NaN or infinite values for normalised noise"),
        (hooked, "gives other results than its forward"),
        (lambda: Doubled(conv_bn(2, 2), nn.ReLU(), *HEAD), "Doubled: called with images it gives"),
        (lambda: Net(lambda n, x: n.rest(F.dropout(F.relu(n.a(x))))), "dropout that is always on"),
        (lambda: Net(lambda n, x: n.rest(torch.softmax(n.a(x), 1))), "softmax: softmax cannot"),
        (
            lambda: Net(lambda n, x: torch.softmax(n.rest(F.relu(n.a(x))), 0)),
            "softmax: softmax cannot",
        ),
        (lambda: Net(lambda n, x: n.rest(F.leaky_relu(n.a(x), 1.0))), "slope 1; expected 0 <="),
        (lambda: Net(lambda n, x: n.rest(F.leaky_relu(n.a(x), -0.1))), "slope -0.1; expected"),
        (lambda: Net(lambda n, x: n.rest(F.hardtanh(n.a(x), 0.0, -0.0))), "not understood"),
        (lambda: Net(through(lambda n, z: n.end(z + z))), "add: adds a value to itself"),
        (
            lambda: nn.Sequential(
                nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2, eps=0), nn.ReLU(), *HEAD
            ),
            "1: a BatchNorm of eps 0",
        ),
    ],
)
def test_what_is_refused_is_named(make, says):
    torch.manual_seed(0)
    with pytest.raises(InputError, match=says):
        trace(make().eval(), SHAPE)
