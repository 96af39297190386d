# %% [markdown]
# # Many problems over many machines
# Each Ray actor holds a generator and a reward model of its own. On a cluster change one line: `ray.init("auto")`.

# %%
import logging
import sys
import tempfile
import warnings

import inferscale as isc
from inferscale.ray import solve_dataset

try:
    import ray
except ImportError:
    print('Ray is not installed: pip install "inferscale[ray]"')
    sys.exit()

warnings.filterwarnings("ignore", module=r"ray\.")  # what Ray says of its own future
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

# %% [markdown]
# Models are made in the actors. On GPUs: `num_gpus=1`, and the number of actors that you have GPUs for.


# %%
def make_generator() -> isc.HFGenerator:
    return isc.HFGenerator(*isc.zoo.load("policy-s"), temperature=0.8, max_new_tokens=160)


def make_reward_model() -> isc.HFProcessRewardModel:
    judge = isc.zoo.load("prm-s")
    return isc.HFProcessRewardModel(*judge, good_token="<good>", bad_token="<bad>", reduction="min")


# %% [markdown]
# Journals go where all machines can write: an actor that dies is started again and goes on, and so does this very call
# if it is made again.

# %%
problems = isc.zoo.problems("test")[:16]
with tempfile.TemporaryDirectory() as storage:
    results = solve_dataset(
        problems, isc.REBASE(width=8), make_generator, make_reward_model, num_actors=2, batch_size=8, storage=storage
    )
ray.shutdown()

right = sum(bool(r.is_correct) for r in results)
print(f"{right} of {len(results)} right, {sum(r.cost.tokens for r in results):,} tokens")
