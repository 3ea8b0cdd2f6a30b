"""Transposed convolutions in float that the converter makes no model of, or one that can't run; 1e-6 is right."""

from lines import *

image = torch.nn.ConvTranspose2d
for conv, shape in (
    (image(8, 6, 3, stride=(1, 3), padding=(2, 0)), (2, 8, 5, 6)),
    (image(8, 6, 3, stride=(1, 3), padding=(2, 0), output_padding=(0, 1)), (2, 8, 5, 6)),
    (image(8, 6, 3, stride=2, padding=1, output_padding=1), (2, 8, 5, 6)),
):
    x = torch.randn(shape)
    try:
        model = converted(conv.eval(), x)
    except Exception as error:
        print(conv, "convert:", type(error).__name__, str(error).partition("error:")[2][:110])
        continue
    for kernels in KERNELS:
        tell(f"{conv} {kernels}", lambda: run(model, kernels, x), conv(x))
