"""Constrained decoding beside its peers, in one run on one thread: masks, whole searches, subsets, and whether the
answers are the same. IDs and weights are random: neither changes the work.

Times are the fastest of a few repeats; compare ratios, not absolute times.
"""

import itertools

import numpy as np
import torch
import typer
from measuring import record
from tqdm import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

from semid_lib.decoding import adapters, beam_search, scorers
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.studies import decoding_study, other_decoders
from semid_lib.workbench import store

FIRST = other_decoders.FIRST  # tokens before those of semantic IDs
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}


def t5(n_tokens: int, dim: int, n_layers: int, feed_forward: int) -> T5ForConditionalGeneration:
    sizes = {"d_model": dim, "d_ff": feed_forward, "num_layers": n_layers, "num_heads": 6, "d_kv": 64}
    return T5ForConditionalGeneration(T5Config(vocab_size=n_tokens, decoder_start_token_id=0, **sizes, **SPECIAL))


def qwen3(n_tokens: int, dim: int, n_layers: int, feed_forward: int) -> Qwen3ForCausalLM:
    sizes = {"hidden_size": dim, "intermediate_size": feed_forward, "num_hidden_layers": n_layers}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=n_tokens, **sizes, **heads, **SPECIAL))


class Case:
    """A model with random weights, a random catalogue and prompts, and both ways to search."""

    def __init__(self, make, ids: np.ndarray, codebook_size: int, shape: tuple, n_users: int, prompt: int, seed: int):
        torch.manual_seed(seed)
        self.ids, n_levels = ids, ids.shape[1]
        self.tokens = [FIRST + level * codebook_size + np.arange(codebook_size) for level in range(n_levels)]
        n_tokens = FIRST + n_levels * codebook_size
        self.model = make(n_tokens, *shape).eval()
        for name, weight in self.model.named_parameters():
            if weight.ndim > 1 and "relative" not in name:  # scores far apart, as those of a trained model are
                torch.nn.init.normal_(weight, std=1.2 / weight.shape[1] ** 0.5)
        is_t5 = self.model.config.is_encoder_decoder
        self.scorer = (scorers.EncoderDecoderScorer if is_t5 else scorers.CausalScorer)(self.model, self.tokens)
        self.trie, self.start = PrefixTrie.build(ids), 1 if is_t5 else prompt
        tokens = torch.randint(FIRST, n_tokens, (n_users, prompt))
        self.contexts = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        self.follow = adapters.allowed_tokens_fn(ids + [level[0] for level in self.tokens], self.start)

    def here(self, width: int, allowed=None) -> torch.Tensor:
        return beam_search.constrained_beam_search(self.scorer, self.contexts, self.trie, width, width, allowed).items

    def generate(self, width: int) -> torch.Tensor:
        n_levels = self.trie.n_levels
        written = self.model.generate(
            **self.contexts,
            max_new_tokens=n_levels,
            min_new_tokens=n_levels,
            num_beams=width,
            num_return_sequences=width,
            do_sample=False,
            length_penalty=0.0,
            prefix_allowed_tokens_fn=self.follow,
        )
        return torch.from_numpy(decoding_study.items_of(written, self.tokens, self.trie)).view(-1, width)


SHAPES = {
    "T5, 4+4 layers of 128": (t5, (128, 4, 1024)),
    "Qwen3, 4 layers of 256": (qwen3, (256, 4, 768)),
}


def searches(n_items: int, prompt: int = 82, width: int = 50) -> list[dict]:
    """A whole search beside `generate` with `prefix_allowed_tokens_fn`."""
    lines = []
    for n_users, (name, (make, shape)) in itertools.product((8, 32), SHAPES.items()):
        case = Case(make, other_decoders.random_ids(n_items, 4, 256), 256, shape, n_users, prompt, seed=0)
        case.here(width)
        here, found = decoding_study.best_seconds(lambda c=case: c.here(width), 5)
        theirs, generated = decoding_study.best_seconds(lambda c=case: c.generate(width), 2)
        lines.append(
            {
                "method": f"{name}, {n_users} users",
                "generate, ms a user": 1000 * theirs / n_users,
                "here, ms a user": 1000 * here / n_users,
                "times faster": theirs / here,
                "users with the same list": int((generated == found).all(dim=1).sum()),
                "invalid": int((found < 0).sum()),
            }
        )
    return lines


def subsets(n_items: int, n_users: int = 8, prompt: int = 82, width: int = 50) -> list[dict]:
    """The same T5 search when only some items may come out; the mask is made anew for every request."""
    make, shape = SHAPES["T5, 4+4 layers of 128"]
    case = Case(make, other_decoders.random_ids(n_items, 4, 256), 256, shape, n_users, prompt, seed=0)
    chance = np.random.default_rng(0).random(n_items)
    masks = {"all items, no mask": None, "all items": chance < 2}
    masks |= {f"{share:g} of the items": chance < share for share in (0.5, 0.1, 0.01, 0.001)}
    masks |= {"50 items": chance <= np.sort(chance)[49], "one item": chance <= chance.min()}
    seconds = dict.fromkeys(masks, np.inf)
    for _ in range(15):  # in turns, so that the noise of the machine is shared
        for name, mask in masks.items():
            seconds[name] = min(seconds[name], decoding_study.best_seconds(lambda m=mask: case.here(width, m), 1)[0])
    return [
        {
            "method": name,
            "ms a user": 1000 * one / n_users,
            "of no mask": one / seconds["all items, no mask"],
            "outside the subset": outside(case.here(width, masks[name]), masks[name]),
        }
        for name, one in seconds.items()
    ]


def outside(items: torch.Tensor, mask: np.ndarray | None) -> int:
    return 0 if mask is None else int((~mask[items[items >= 0].numpy()]).sum())


def agreement(n_cases: int) -> list[dict]:
    """Small random cases: the same items in the same order as `generate`, and as scoring every item."""
    lines = []
    for name, (make, _) in SHAPES.items():
        same = exact = 0
        for seed in tqdm(range(n_cases), desc=name):
            rng = np.random.default_rng(seed)
            n_levels, size = int(rng.integers(2, 5)), int(rng.choice([8, 32, 64]))
            n_items = int(min(rng.integers(60, 3000), size**n_levels))
            ids = other_decoders.random_ids(n_items, n_levels, size, seed)
            width = int(min(rng.integers(2, 40), n_items // 2))
            case = Case(make, ids, size, (64, 2, 128), n_users=2, prompt=int(rng.integers(1, 20)), seed=seed)
            found = case.here(min(width, size))
            same += bool((case.generate(min(width, size)) == found).all())
            wide = beam_search.constrained_beam_search(case.scorer, case.contexts, case.trie, n_items, 20)
            truth = beam_search.exact_ranking(case.scorer, case.contexts, case.trie, 20)
            exact += bool((wide.items == truth.items).all())
        lines.append(
            {"method": name.split(",")[0], "cases": n_cases, "as generate": same, "wide beam as exact ranking": exact}
        )
    return lines


def main(items: int = 1_000_000, cases: int = 200) -> None:
    """Measure all tables: a step on so many items, searches on a tenth, agreement in so many small cases."""
    torch.set_num_threads(1)
    ids = other_decoders.random_ids(items, 4, 256)
    tables = {
        # first, in a process without a history: what `generate` takes depends on memory that others left behind
        "decoding_search": lambda: searches(items // 10),
        "decoding_subset": lambda: subsets(items // 10),
        "decoding_agreement": lambda: agreement(cases),
        "decoding_step": lambda: decoding_study.compare(ids, seconds=1.0, progress=True),
    }
    for topic, measure in tables.items():
        record(store.Store("random", "bench", fingerprint=""), topic, topic, measure())


if __name__ == "__main__":
    typer.run(main)
