"""A table of embeddings with an odd width has one column more once it has 4 bits."""

import warnings

import torch
from torch import nn
from torch.ao.quantization import QConfigMapping, float_qparams_weight_only_qconfig_4bit
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

warnings.filterwarnings("ignore")
x, m = torch.arange(5), nn.Sequential(nn.Embedding(12, 3)).eval()
mapping = QConfigMapping().set_object_type(nn.Embedding, float_qparams_weight_only_qconfig_4bit)
print("expected", tuple(m(x).shape), "got", tuple(convert_fx(prepare_fx(m, mapping, (x,)))(x).shape))
