"""The work in vLLM, in process, on a CPU; run by the Python of vLLM's environment, see `beside`."""

import json
import os
import sys
import time
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
}


def work(llm: Any, sampling: Any, task: dict[str, Any]) -> None:
    """Steps of all rows, parents chosen between them; equal prefixes stand together and share blocks."""
    rows = [task["prompt"]] * task["rows"]
    for parents in task["parents"]:
        prompts = [{"prompt_token_ids": row} for row in rows]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        grown = [row + list(output.outputs[0].token_ids) for row, output in zip(rows, outputs, strict=True)]
        rows = [grown[parent] for parent in parents]


def main() -> None:
    """Reads a task, prints the CPU seconds of its second run."""
    task = json.load(sys.stdin)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=task["model"],
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=2048,
        enforce_eager=True,
        enable_prefix_caching=True,
        block_size=32,
        max_num_seqs=task["rows"],
    )
    sampling = SamplingParams(temperature=1.0, max_tokens=task["step"], ignore_eos=True, detokenize=False)
    for _ in range(2):
        llm.reset_prefix_cache()
        start = time.process_time()
        work(llm, sampling, task)
        spent = time.process_time() - start
    print("\n" + json.dumps({"seconds": spent}))


if __name__ == "__main__":
    main()
