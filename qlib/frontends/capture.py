from qlib.capture import *  # noqa
from qlib.capture import capture, check_inputs
