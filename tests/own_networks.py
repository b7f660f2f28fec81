"""Small networks as people write them; none of them knows of stars-deploy."""

import torch
import torch.nn.functional as F
from torch import nn

SHAPE = (2, 8, 8)


def conv(inputs, outputs, kernel=3, stride=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, **options)


def conv_bn(inputs, outputs, kernel=3, stride=1, **options):
    block = conv(inputs, outputs, kernel, stride, bias=False, **options)
    return nn.Sequential(block, nn.BatchNorm2d(outputs))


class Plain(nn.Module):
    """Max pooling, dropout, and a head of two linear layers, as in a tutorial."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(2, 6), nn.ReLU(), nn.MaxPool2d(2), conv_bn(6, 8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3)
        )

    def forward(self, x):
        return self.classifier(self.features(x))


class Residual(nn.Module):
    """Blocks with a projection, a lambda shortcut of option A, and functional calls."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv_bn(2, 4), conv_bn(4, 4), conv_bn(4, 4)
        self.c, self.d, self.project = conv_bn(4, 6, stride=2), conv_bn(6, 6), conv_bn(4, 6, 1, 2)
        self.e, self.f = conv_bn(6, 8, stride=2), conv_bn(8, 8)
        self.shortcut = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        x = F.relu(torch.add(self.d(F.relu(self.c(x))), self.project(x)))
        out = self.f(F.relu(self.e(x)))
        out += self.shortcut(x)
        x = F.relu(out)
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


class Membrane(nn.Module):
    """Pre-activation blocks: what is added is read by one ReLU and by the next add."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.c, self.d = conv_bn(2, 5), *(conv_bn(5, 5) for _ in "abcd")
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        z = self.stem(x)
        z = z + self.b(torch.relu(self.a(torch.relu(z))))
        z = z + self.d(torch.relu(self.c(torch.relu(z))))
        return self.linear(torch.relu(z).mean((2, 3)))


class Bottleneck(nn.Module):
    """Inverted bottlenecks: depthwise convolutions, ReLU6, sums that no activation follows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(2, 4), nn.ReLU6())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv_bn(4, 8, 1), nn.ReLU6(), conv_bn(8, 8, groups=8), nn.ReLU6(), conv_bn(8, 4, 1)
            )
            for _ in range(2)
        )
        self.last = nn.Sequential(conv_bn(4, 8, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1))
        self.linear = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.linear(torch.flatten(self.last(x), 1))


class Dense(nn.Module):
    """Concatenations, BatchNorm before ReLU before the convolution, average pooling between."""

    def __init__(self):
        super().__init__()
        self.stem = conv(2, 4)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), conv(4, 3)
        self.bn2, self.conv2 = nn.BatchNorm2d(7), conv(7, 3)
        self.transition = nn.Sequential(
            nn.BatchNorm2d(10), nn.ReLU(), conv(10, 5, 1), nn.AvgPool2d(2)
        )
        self.bn3 = nn.BatchNorm2d(5)
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], 1)
        x = F.relu(self.bn3(self.transition(x)))
        return F.log_softmax(self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1)), dim=1)


class Fire(nn.Module):
    """Squeeze and expand: spikes of two layers side by side, logits from a convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(2, 6), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.squeeze, self.wide, self.narrow = conv_bn(6, 3, 1), conv_bn(3, 4), conv_bn(3, 2, 1)
        self.last = conv(6, 3, 1)

    def forward(self, x):
        x = F.relu(self.squeeze(self.stem(x)))
        x = torch.cat([F.relu(self.wide(x)), F.relu(self.narrow(x))], 1)
        return F.relu(self.last(x)).mean([2, 3])


class Normed(nn.Module):
    """BatchNorm behind the ReLU, BatchNorm1d in the head, a leaky ReLU, pooling before ReLU."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(conv(2, 4), nn.ReLU(), nn.BatchNorm2d(4))
        self.two = nn.Sequential(conv_bn(4, 6), nn.MaxPool2d(2), nn.LeakyReLU(0.1))
        self.three = nn.Sequential(conv_bn(6, 6, stride=2), nn.AvgPool2d(2), nn.ReLU(inplace=True))
        self.head = nn.Sequential(
            nn.Linear(6, 10, bias=False), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)
        )

    def forward(self, x):
        return self.head(self.three(self.two(self.one(x))).squeeze())


NETWORKS = [Plain, Residual, Membrane, Bottleneck, Dense, Fire, Normed]


def trained(network, seed=0, batches=30):
    """A network whose BatchNorms know their inputs, as after training, and differ per channel."""
    torch.manual_seed(seed)
    module = network()
    norms = [m for m in module.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.6, 1.4)
        nn.init.normal_(norm.bias, 0.2, 0.2)
    with torch.no_grad():
        for _ in range(batches):
            module.train()(torch.randn(64, *SHAPE))
    return module.eval()
