"""What a client does with its rows: texts, tokens, local training, and the state it sends back."""

import logging

# Imported on a CPU, bitsandbytes warns that an optional kernel of its is not installed; every run would show it.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit" not in record.getMessage())
