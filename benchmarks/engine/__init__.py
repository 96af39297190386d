"""What sharing prefixes is worth: ``python -m benchmarks.engine --help``.

Every way of doing a work is timed in the same run, interleaved, on one thread: process CPU seconds on a CPU, seconds on
a GPU. The median of the repeats is printed, and its ratio to the floor: the closed-form FLOPs of the work with every
prefix read once, over the rate of a square matrix product measured in the same run, or the bytes that must be read
over the memory's rate, whichever takes longer. Models are random Llamas: the work does not depend on what the weights
hold. Set ``OMP_NUM_THREADS=1``: some ways start threads of their own.

For the CPU figures of the documentation: ``--size s``, ``--size s --prompt 1024``, ``--size m``, ``--size l``. The
allocator is left as it is; the baselines that grow their caches by concatenation gain from one that keeps large pages
(tcmalloc, ``MALLOC_MMAP_THRESHOLD_``). ``--size s --repeats 1`` takes about half a minute of CPU.
"""
