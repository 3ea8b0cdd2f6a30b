"""A linear layer that is called twice: XNNPACK adds the bias of one call in the steps of the other one's."""

import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from torch import nn
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.fc(x))


torch.manual_seed(0)
m, x = Twice().eval(), torch.rand(4, 8)
with torch.no_grad():
    m.fc.weight.mul_(0.1)
    m.fc.bias.fill_(5.0)
    want = m(x)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(m, (x,)).module(), quantizer)
    prepared(x)
    converted = convert_pt2e(prepared)
    reference = converted(x)
    lowered = to_edge_transform_and_lower(torch.export.export(converted, (x,)), partitioner=[XnnpackPartitioner()])
    content = lowered.to_executorch().buffer
    got = _load_for_executorch_from_buffer(content).forward((x,))[0]
print("expected           ", want[0, :4].tolist())
print("got, torch         ", reference[0, :4].tolist())
print("got, XNNPACK       ", got[0, :4].tolist())
