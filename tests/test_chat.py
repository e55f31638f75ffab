"""Conversations: what a model's chat template makes of them, and that exactly what the assistant says is a target."""

import json
from dataclasses import replace

import numpy as np
import pytest
import transformers as peers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.utils.chat_template_utils import render_jinja_template

import isoform
import weights
from isoform.cli import main
from isoform.codecs.chat import conversation, plain_parts
from isoform.codecs.registry import load_codec, read_tokenizer
from isoform.codecs.template import render
from isoform.codecs.text import ByteCodec, CharacterCodec
from isoform.data.config import Data
from isoform.data.loader import ValidationRows, build_loader
from isoform.data.sources import read_records
from isoform.data.tokens import load_tokens
from isoform.experiment import train
from isoform.inspection.rows import read_rows
from isoform.machine import choose_machine
from isoform.objectives.config import Causal, Contrastive, Masked, Prefix, Seq2seq
from isoform.objectives.views import build_view, check_view
from isoform.preparation import prepare
from isoform.recipe import recipe_from_dict

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content"
    " + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # the last answer has a block of thoughts, the earlier ones have none: as Qwen3
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNMARKABLE = "{{ messages | length }}:{% for m in messages %}{{ m.content }}{% endfor %}"
TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello there, how are you?"},
    {"role": "assistant", "content": "Fine, thanks! And you?"},
    {"role": "user", "content": "naïve 日本 🙂"},
    {"role": "assistant", "content": "Good — 🙂"},
]
CPU = choose_machine("cpu", "float32")
CONTENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), max_size=12)
TALKS = st.builds(
    lambda system, pairs: [
        *([{"role": "system", "content": system}] if system else []),
        *(m for u, a in pairs for m in ({"role": "user", "content": u}, {"role": "assistant", "content": a})),
    ],
    CONTENT,
    st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function from a template to a folder with a tokenizer, and transformers' tokenizer of it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(m["content"] for m in TURNS)] * 9, trainer)
    made = {}

    def of(template):
        if template not in made:
            folder = tmp_path_factory.mktemp("chat")
            peer = peers.PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", extra_special_tokens=SPECIAL[2:]
            )
            peer.chat_template = template
            peer.save_pretrained(folder)
            made[template] = folder, peers.AutoTokenizer.from_pretrained(folder)
        return made[template]

    return of


def said(codec, encoding):
    """The texts of each run of targets."""
    runs = np.split(np.arange(len(encoding)), np.flatnonzero(np.diff(encoding.is_target)) + 1)
    return [codec.decode(encoding.ids[r], show_special=True) for r in runs if encoding.is_target[r[0]]]


@given(TALKS)
def test_marked_templates_have_the_targets_of_transformers(folders, talk):
    folder, peer = folders(MARKED)
    encoding = load_codec(folder).encode({"messages": talk})
    theirs = peer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    assert encoding.ids.tolist() == theirs["input_ids"]
    assert encoding.is_target.tolist() == [bool(m) for m in theirs["assistant_masks"]]


@pytest.mark.parametrize("template", [CHATML, LLAMA2, THINKING, MARKED], ids=["chatml", "llama2", "thinking", "marked"])
def test_other_templates_have_the_ids_of_transformers_and_what_is_said_by_construction(template, folders):
    folder, peer = folders(template)
    codec = load_codec(folder)
    for talk in (TURNS, TURNS[1:], TURNS[:3]):
        encoding = codec.encode({"messages": talk})
        assert encoding.ids.tolist() == peer.apply_chat_template(talk, return_dict=True)["input_ids"]
        answers = [m["content"] for m in talk if m["role"] == "assistant"]
        if template is LLAMA2:
            expected = [f" {answer} </s>" for answer in answers]
        else:
            expected = [f"{answer}<|im_end|>" for answer in answers]
        if template is THINKING:
            expected[-1] = f"<think>\n\n</think>\n\n{expected[-1]}"
        assert said(codec, encoding) == expected
        prompt = codec.encode_prompt(talk[:-1])
        theirs = peer.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert prompt.tolist() == theirs
        if template is not THINKING:
            assert encoding.ids[: len(prompt)].tolist() == prompt.tolist() and encoding.is_target[len(prompt)]


def test_special_tokens_of_a_template_are_read_even_where_those_of_texts_are_not(folders):
    folder, _ = folders(CHATML)
    codec, plain = load_codec(folder), read_tokenizer(folder / "tokenizer.json")
    assert plain.encode({"messages": TURNS}).ids.tolist() == codec.encode({"messages": TURNS}).ids.tolist()
    assert len(plain.encode_text("<|im_end|>")) > 1 == len(codec.encode_text("<|im_end|>"))


@pytest.mark.parametrize("codec", [ByteCodec(), CharacterCodec("".join(map(chr, range(32, 127))) + "\nï日本🙂—")])
def test_a_model_without_a_template_reads_the_plain_form(codec):
    encoding = codec.encode({"messages": TURNS})
    end = "<|endoftext|>"
    text = (
        f"System: Be short.\n\nUser: Hello there, how are you?\n\nAssistant: Fine, thanks! And you?{end}"
        f"User: naïve 日本 🙂\n\nAssistant: Good — 🙂{end}"
    )
    assert codec.decode(encoding.ids, show_special=True) == text
    assert said(codec, encoding) == [f" Fine, thanks! And you?{end}", f" Good — 🙂{end}"]
    prompt = codec.encode_prompt(TURNS[:-1])
    assert encoding.ids[: len(prompt)].tolist() == prompt.tolist() and encoding.is_target[len(prompt) :].all()
    assert not encoding.is_target[: len(prompt)][-10:].any()
    with pytest.raises(ValueError, match="calls a tool"):
        list(plain_parts([{"role": "assistant", "tool_calls": []}]))
    with pytest.raises(ValueError, match="with tools needs a model with a chat template"):
        codec.encode({"messages": TURNS, "tools": [{"name": "x"}]})


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": ["b"], "name": None},
        ],
    ],
)
def test_messages_by_other_names_are_the_same(messages):
    assert conversation(messages, "x") == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages are a list"),
        ("hello", "messages are a list"),
        (["hello"], "x, message 1 is a str"),
        (
            [{"role": "user", "content": "a"}, {"role": "narrator", "content": "b"}],
            "message 2: the role 'narrator' is none",
        ),
        ([{"role": "user"}], "message 1: has no 'content'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of the type 'image'; only texts"),
        ([{"role": "user", "content": "\ud800"}], "message 1: has a lone surrogate"),
        ([{"role": "user", "content": "a", "more": object()}], "message 1: Object of type object"),
    ],
)
def test_what_is_no_conversation_is_named(messages, message):
    with pytest.raises(ValueError, match=message):
        conversation(messages, "x")


def test_tool_calls_and_tools_reach_the_template(folders):
    template = (
        "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder, peer = folders(template)
    talk = [TURNS[1], {"role": "assistant", "tool_calls": [{"name": "é"}]}, {"role": "tool", "content": "5"}, TURNS[2]]
    tools = [{"name": "clock"}]
    codec = load_codec(folder)
    encoding = codec.encode({"messages": talk, "tools": tools})
    # transformers wants JSON schemas, which these are not; its renderer does not mind
    assert codec.decode(encoding.ids, show_special=True) == peer.apply_chat_template(talk, tools=tools, tokenize=False)
    assert said(codec, encoding) == ['[{"name": "é"}]<|im_end|>', "Fine, thanks! And you?<|im_end|>"]


def test_smollm2_is_tuned_by_its_own_template():
    codec = isoform.load(weights.present(weights.smollm2(), "SmolLM2")).codec
    encoding = codec.encode({"messages": TURNS[1:]})
    text = codec.decode(encoding.ids, show_special=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by")
    assert said(codec, encoding) == ["Fine, thanks! And you?<|im_end|>", "Good — 🙂<|im_end|>"]


# Templates of strangers


HOSTILE = {
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "doubled": "{% set ns = namespace(x='aaaa') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "added": "{% set ns = namespace(x='aaaa') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "block": "{% set ns = namespace(x='aaaa') %}{% for a in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "product": "{{ 'a' * 10**10 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "centred": "{{ 'a'.center(10**10) }}",
    "formatted": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "filter": "{{ 'a' | center(10000000000) }}",
    "indent": "{{ [1] | tojson(indent=10000000000) }}",
    "replaced": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
    "replaced by filter": "{% set x = 'a' * 100000 %}{{ x | replace('a', x) }}",
    "joined": "{{ ('a' * 100000).join(range(99999) | list | map('string') | list) }}",
    "laughs": "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "laughs as JSON": "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x | tojson }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ raise_exception('got there') }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "attribute": "{% set ns = namespace(__class__=1) %}",
    "file": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "syntax": "{% for %}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long": "a" * (2**20 + 1),
    "refusal": "{{ raise_exception('no system, please') }}",
    "missing": "{{ nothing.at.all }}",
    "clock": "{{ strftime_now('%Y') }}",
    "lorem": "{{ lipsum(n=100000) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_templates_of_strangers_are_stopped(name):
    with pytest.raises(ValueError, match="the chat template fails: ") as error:
        render(HOSTILE[name], TURNS)
    assert "got there" not in str(error.value) and "\n" not in str(error.value)
    assert name != "refusal" or "no system, please" in str(error.value)


@pytest.mark.parametrize("template", [CHATML, LLAMA2, THINKING, MARKED])
def test_limits_do_not_change_what_templates_write(template):
    values = {"bos_token": "<s>", "eos_token": "</s>"}
    for prompt in (False, True):
        ours = render(template, TURNS, add_generation_prompt=prompt, tools=None, **values)
        theirs, _ = render_jinja_template([TURNS], chat_template=template, add_generation_prompt=prompt, **values)
        assert ours.text == theirs[0]


def test_a_template_that_hides_what_is_said_is_refused_with_the_location(folders, tmp_path):
    folder, _ = folders(UNMARKABLE)
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    with pytest.raises(
        ValueError, match=r"x.jsonl, line 1: the chat template lays out .* mark it there by {% generation %}"
    ):
        load_tokens(read_records(str(tmp_path / "x.jsonl")), load_codec(folder))


# Training


def talks(count):
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}."},
                {"role": "assistant", "content": f"{n}!"},
                {"role": "user", "content": "Again."},
                {"role": "assistant", "content": f"{n}!!"},
            ]
        }
        for n in range(count)
    ]


def test_views_of_conversations_keep_the_contract_and_count_what_is_said():
    codec = ByteCodec()
    encoding = codec.encode(talks(1)[0])
    for objective in (Causal(), Prefix()):
        view = build_view(objective)
        check_view(view, [encoding])
        example = view.example(encoding, np.random.default_rng(0))
        counted = example.targets[example.loss_weights > 0]
        assert codec.decode(counted, show_special=True) == " 0!<|endoftext|> 0!!<|endoftext|>"
    example = build_view(Prefix()).example(encoding, np.random.default_rng(0))
    assert codec.decode(encoding.ids[: example.inputs.prefix]) == "User: Say 0.\n\nAssistant:"
    for objective, message in (
        (Seq2seq(), "no source"),
        (Masked(), "a conversation"),
        (Contrastive(), "a source and a tar"),
    ):
        view = build_view(objective, codec.with_special(["<|mask|>"]))
        with pytest.raises(ValueError, match=message):
            view.check(encoding)


def test_long_conversations_keep_their_beginning_and_texts_all_their_parts():
    codec, view, data = ByteCodec(), build_view(Causal()), Data(rows="packed")
    records = [*talks(2), {"text": "x" * 100}]
    tokens = load_tokens(records, codec)
    with pytest.warns(
        UserWarning, match=r"conversations longer than a row of context_length=40: .* left out, \d+ tokens"
    ):
        loader = build_loader(data, tokens, view, context_length=40, seed=0)
    batch = loader.rows(0, loader.rows_per_epoch)
    said_ = codec.decode(batch.targets[batch.loss_weights > 0].numpy(), show_special=True)
    assert (
        said_.count("0!<|endoftext|>") == 1
        and "!!" not in said_
        and said_.replace("<|endoftext|>", "").count("x") == 99
    )
    with pytest.warns(UserWarning, match=r"2 of 3 training records don.t fit"):
        loader = build_loader(data, tokens, view, context_length=20, seed=0)
    for rows in ("stream", "split"):
        with pytest.raises(ValueError, match="which record 0 isn't; set it to packed"):
            build_loader(Data(rows=rows), tokens, view, context_length=20, seed=0)
    rows = ValidationRows(data, load_tokens(talks(3), codec), codec, view, context_length=200)
    assert sum(float(b.loss_weights.sum()) for b, _ in rows.batches(9)) == 3 * (len(" 0! 0!!") + 2)


def recipe(path, **changes):
    stack = {"num_layers": 1, "blocks": {"0": {"mixer": {"num_heads": 2}}}}
    training = {"steps": 3, "global_batch_tokens": 256, "validate_every": 0, "sample_tokens": 0}
    return recipe_from_dict(
        {
            "data": {"path": str(path), "rows": "packed"},
            "codec": {"kind": "bytes"},
            "model": {"model_dim": 16, "context_length": 128, "decoder": stack},
            "training": training,
            **changes,
        }
    )


def test_training_on_conversations_from_the_file_to_the_run(tmp_path, capsys):
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(t) + "\n" for t in talks(40)))
    for kind in ("bytes", "characters"):
        plan = recipe(path, codec={"kind": kind})
        run = train(plan, tmp_path / kind, machine=CPU)
        assert isoform.load(run.folder).codec.encode(talks(1)[0]).is_target.any()
        assert main(["evaluate", str(run.folder), "--device", "cpu"]) == 0
    prepared = prepare(recipe(path))
    (row,) = read_rows(prepared, 1)
    shown = "".join(target for target in row.targets if target is not None)
    assert "!<|endoftext|>" in shown and "User" not in shown and "Say" not in shown
    capsys.readouterr()


def test_a_model_with_a_template_is_tuned_by_it(folders, tmp_path):
    folder, peer = folders(MARKED)
    config = peers.LlamaConfig(
        vocab_size=len(peer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    peers.LlamaForCausalLM(config).save_pretrained(folder)
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(t) + "\n" for t in talks(40)))
    trained = isoform.load(folder)
    plan = recipe(path, codec={"kind": "characters"})
    plan = replace(plan, start=str(folder), model=replace(trained.recipe.model, context_length=128))
    run = train(plan, tmp_path / "run", machine=CPU)
    tuned = isoform.load(run.folder)
    assert tuned.codec.origin.template() == MARKED
    assert tuned.codec.encode(talks(1)[0]).ids.tolist() == trained.codec.encode(talks(1)[0]).ids.tolist()
