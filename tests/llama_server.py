"""llama.cpp's server, from the package ``xllamacpp``: ``python tests/llama_server.py MODEL PORT CONTEXT``."""

import sys
import time

import xllamacpp

if __name__ == "__main__":
    options = xllamacpp.CommonParams()
    options.model.path = sys.argv[1]
    options.hostnames, options.port = ["127.0.0.1"], int(sys.argv[2])
    options.n_parallel, options.n_ctx, options.kv_unified = 4, 4 * int(sys.argv[3]), False
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.endpoint_metrics = True
    server = xllamacpp.Server(options)
    print(server.listening_address, flush=True)
    time.sleep(3600)
