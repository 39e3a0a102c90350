# SPDX-License-Identifier: Apache-2.0
"""Our tokenizer against the Python package `tokenizers`, and the fixture that the C++ test reads.

usage: tokenizer_peer.py compare TEST_PROGRAM [--quick] [--only=NAME]
           status 1 where something differs without a reason; --only: tokenizers with NAME in their name
       tokenizer_peer.py fixture OUT_DIR
           writes tokenizer_deepseek_style.json and tokenizer_expected.json

`compare` makes vocabularies, encodes texts with both and compares the ids and what they decode to. It drives the hidden
case of tests/io/tokenizer.test.cpp: with DSV4_TOKENIZER_PEER=FOLDER in its environment, `TEST_PROGRAM "[peer]"` reads
    FOLDER/tokenizer.json
    FOLDER/texts.bin      per text: u32 flags (1: add_special_tokens), u32 length, bytes
and writes
    FOLDER/tokens.bin     per text: u32 count, i32 ids, u32 length, bytes (the ids decoded)
A difference has a reason when the text has a code point whose general category depends on the Unicode version: PCRE2,
the package and this Python each bring their own tables. Such code points are counted and listed by range.

Recorded with tokenizers 0.23.3. Training is deterministic for one version of the package.
"""

import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import sysconfig
import tempfile
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DIGITS = r"\p{N}{1,3}"
CJK = "[一-龥぀-ゟ゠-ヿ]+"
WORDS = (
    r'[!"#$%&'
    r"'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
CORPUS = [
    "The heron stood in the shallow water and waited for the evening. Nobody on the bridge noticed it.",
    "There were seven bridges over the river, and every one of them had been built by a different family.",
    "When the kettle whistles, take it off the stove; then pour the water slowly, and wait another minute.",
    "She'd thought that they wouldn't come, but they've brought bread, cheese and 24 small lanterns.",
    "The measurement took 128 milliseconds in 2026, and 3.14159 seconds when the cache was cold.",
    "Other than the weather, nothing that they had planned for the morning went wrong.",
    "for (int row = 0; row < rows; ++row) {\n    total += weight[row] * value[row];\n}\nreturn total;\n",
    'def mean(values):\n    """The mean of a list."""\n    return sum(values) / len(values)\n\n\nprint(mean([1, 2, 3]))\n',
    "struct lamp {\n  bool lit = false;\n  int height_in_metres;\n};\n\ntemplate <class T>\nT twice(T x) { return x + x; }\n",
    '{"name": "harbour", "depth": 12.5, "open": true, "boats": [101, 102, 103]}\n',
    'SELECT boat, COUNT(*) FROM harbour WHERE depth > 12 GROUP BY boat;\n#!/bin/sh\necho "$HOME" | wc -c\n',
    "河边的白鹭站在浅水里，等着傍晚到来。桥上没有人注意到它。",
    "这条河上有七座桥，每一座桥都是由不同的人家建造的。二〇二六年的春天，河水涨得很高。",
    "今天的天气很好，我们在河边的茶馆里喝了三杯茶，然后慢慢地走回家。",
    "川のそばで白い鳥が夕方を待っていた。橋の上の人はだれも気がつかなかった。",
    "この川には七つの橋があり、それぞれの橋はちがう家族によって作られた。コーヒーとパンを買いました。",
    "Der Fährmann grüßt höflich; l'été dernier, le café était fermé; el niño soñó con el río.",
    "Цапля стояла в воде и ждала вечера. Η γέφυρα είναι παλιά. 강가에 새가 서 있었다.",
]
EXPECTED = [
    "",
    " ",
    "a",
    "The heron waited for the evening.",
    " the  river   and\tthe\n\n  bridge ",
    "1 12 123 1234 12345 3.14159",
    "She'd wouldn't they've",
    "for (int row = 0; row < rows; ++row) {\n    total += weight[row];\n}\n",
    "河边的白鹭等着傍晚",
    "橋の上の人 コーヒー2杯",
    "桥上有7座abc桥",
    "café naïve el río",
    "e\u0301 combining",
    "Цапля ждала γέφυρα 강가",
    "👩‍👩‍👧 \U0001f1e9\U0001f1ea emoji",
    "price: $9.99 (−5%) §7",
    "a\r\nb\rc\u2028d\u0085e",
    "\u180e\u200b\ufeff\u00a0x\u3000y",
    "!important #include <vector> @user",
    "<｜User｜>Hello<｜Assistant｜><think>\nso\n</think>",
    BOS + "The river" + EOS,
    "<｜begin▁of▁sentence<｜begin▁of▁sentence｜>｜>",
    "ⅷ ½ ٣٤٥٦ 一二三",
    "   ",
    "\n\n\n",
    "x" * 40,
    "\x00\x01\x7f",
    "snake_case camelCase __init__",
    "\U0010ffff\ue000",
    "Ａｂｃ１２３",
    "ﷺ ไทย हिन्दी עברית",
]


def deepseek_pieces():
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in (DIGITS, CJK, WORDS)]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def trained(pieces, texts, size, **model):
    made = Tokenizer(models.BPE(**model))
    made.normalizer = normalizers.Sequence([])
    made.pre_tokenizer = pieces
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[BOS, EOS, PAD],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    made.add_special_tokens([AddedToken("<｜User｜>", normalized=False), AddedToken("<｜Assistant｜>", normalized=False)])
    made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return made


def every_pair(pieces, seed, **model):
    """Tokens for all bytes and all pairs of bytes, ranked at random: a boundary elsewhere gives other ids."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in letters for b in letters]
    random.Random(seed).shuffle(pairs)
    made = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(letters + [a + b for a, b in pairs])}, merges=pairs, **model)
    )
    made.pre_tokenizer = pieces
    made.decoder = decoders.ByteLevel()
    return made


def code_points():
    return [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def each_code_point(quick):
    for c in code_points()[:: 97 if quick else 1]:
        yield c
        yield f"a{c}b {c} 1{c}2 "
        yield f"漢{c}字\n{c}!{c}a{c}{c}\t{c}\r\n {c}"


def random_texts(count, seed):
    """Valid UTF-8 from mixtures of blocks, seen as Unicode versions agree and as not."""
    rng = random.Random(seed)
    assigned = [c for c in code_points() if unicodedata.category(c) not in ("Cn", "Co")]
    blocks = [assigned[i : i + 128] for i in range(0, len(assigned), 128)]
    spice = list("  \n\r\t'!-_<>｜▁09azAZéß漢字かカ𝔘😀\u0301\u200d\u00a0\u3000\u180e") + [
        "'s",
        "'ll",
        "<think>",
        BOS,
        "<｜",
        "\r\n",
        "   ",
    ]
    for _ in range(count):
        near = rng.sample(blocks, 3)
        yield "".join(
            rng.choice(spice) if rng.random() < 0.5 else rng.choice(rng.choice(near)) for _ in range(rng.randrange(60))
        )


def long_texts():
    for unit in (
        "a",
        " ",
        "\n",
        "ab",
        "1",
        "é",
        "漢",
        "か",
        "!",
        "😀",
        " a",
        "\r\n",
        "\t ",
        "<",
        "<think>",
        "a\u0301",
        "=-",
        " \n",
    ):
        yield unit * (100_000 // len(unit))
    yield "the river and the bridge " * 8000


def prose(quick):
    """Python's own library: code and English of some size."""
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))[:: 20 if quick else 1]:
        yield path.read_text(encoding="utf-8", errors="replace")


def package(made, texts):
    ids = [e.ids for e in made.encode_batch_fast([t for _, t in texts], add_special_tokens=False)]
    for i, (special, text) in enumerate(texts):
        if special:
            ids[i] = made.encode(text, add_special_tokens=True).ids
    return ids


def ours(program, text_of_tokenizer, texts):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "tokenizer.json").write_text(text_of_tokenizer, encoding="utf-8")
        with open(folder / "texts.bin", "wb") as out:
            for special, text in texts:
                raw = text.encode()
                out.write(struct.pack("<II", special, len(raw)) + raw)
        subprocess.run(
            [program, "[peer]"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=dict(os.environ, DSV4_TOKENIZER_PEER=str(folder)),
        )
        raw, at, found = (folder / "tokens.bin").read_bytes(), 0, []
        while at < len(raw):
            (count,) = struct.unpack_from("<I", raw, at)
            ids = struct.unpack_from(f"<{count}i", raw, at + 4)
            at += 4 + 4 * count
            (length,) = struct.unpack_from("<I", raw, at)
            found.append((list(ids), raw[at + 4 : at + 4 + length]))
            at += 4 + length
        return found


def ranges(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def version_dependent():
    """Code points in other general categories for the package than for this Python, with the package's category."""
    out = {}
    for category in "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co".split():
        split = pre_tokenizers.Split(Regex(rf"\p{{{category}}}"), "removed")
        for c in code_points():
            here = unicodedata.category(c) == category
            there = not split.pre_tokenize_str(c)
            if there and not here:
                out[ord(c)] = category
            elif here and not there:
                out.setdefault(ord(c), "Cn")
    return out


def compare(program, quick, only):
    rng = random.Random(5)
    texts = CORPUS + EXPECTED
    big = texts * 3 + list(prose(True)) + list(random_texts(20_000, 1))
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits, words, literal = Regex(DIGITS), Regex(WORDS), "a"

    def sequence(*parts):
        return pre_tokenizers.Sequence([*parts, byte_level])

    made = {
        "deepseek, trained": trained(deepseek_pieces(), big, 8000),
        "deepseek, every pair": every_pair(deepseek_pieces(), 1),
        "gpt2, trained, ignore_merges": trained(gpt2, big, 3000, ignore_merges=True),
        "gpt2, every pair": every_pair(gpt2, 2),
        "no split, trained": trained(byte_level, texts, 600),
    }
    for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"):
        made[f"{behavior}, letter"] = every_pair(sequence(pre_tokenizers.Split(literal, behavior)), 3)
        made[f"{behavior}, words"] = every_pair(sequence(pre_tokenizers.Split(words, behavior)), 4)
        made[f"{behavior}, empty matches"] = every_pair(sequence(pre_tokenizers.Split(Regex(r"\d*"), behavior)), 5)
        made[f"{behavior}, digits"] = every_pair(sequence(pre_tokenizers.Split(digits, behavior)), 6)
    for name, pattern in {
        "lines": r"^.",
        "line ends": r".$",
        "spaces": r"[\s-]+",
        "not spaces": r"\S+|\s",
        "not not": r"[^\S\d]+",
        "lazy": r"a.*?b",
        "lookbehind": r"(?<=[a-z])[A-Z0-9]|(?<!\s)\(",
        "atomic": r"(?>a+)b|[\]\[-]",
        "possessive": r"a++|b*+c|d?+",
        "counts": r"(a|b){2,}?c|[0-9]{2}|x{1,3}",
        "vertical": r"\v|\f|\t+",
        "code points": "\\x{3042}|\\u3044|\\x41|[\\x{1F600}-\\x{1F64F}]+",
        "symbols": r"\p{Sc}\p{Nd}+|\P{L}|\p{^M}",
        "categories": r"[\p{Lu}\p{Lt}]?[\p{Ll}\p{Lo}]+|\p{Cf}+",
        "no digits": r"\D+",
        "dollar": r"\s+$",
        "caret": "(?:^| )-",
    }.items():
        made["regex, " + name] = every_pair(sequence(pre_tokenizers.Split(Regex(pattern), "isolated")), 7)
    for each in (False, True):
        made[f"digits, {each}"] = every_pair(sequence(pre_tokenizers.Digits(individual_digits=each)), 8)
    overlapping = made["added tokens"] = trained(deepseek_pieces(), texts, 700)
    overlapping.add_tokens(
        [
            AddedToken(t, normalized=n, special=s)
            for t, n, s in (
                ("the", True, False),
                ("the river", True, False),
                (" and the", False, False),
                ("he", False, False),
                ("river and", True, True),
                ("漢", False, True),
                ("<think", True, False),
                ("\n\n", False, False),
                ("aa", False, False),
                ("aaa", True, False),
            )
        ]
    )
    template = made["template"] = trained(deepseek_pieces(), texts, 650)
    around = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 0), (EOS, 1)])
    template.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), around])

    depends = version_dependent()
    print(
        f"tokenizers {tokenizers.__version__}, Unicode of this Python {unicodedata.unidata_version}: "
        f"{len(depends)} code points have another category in the package"
    )
    failed = 0
    for name, tokenizer in made.items():
        if only not in name:
            continue
        everything = name.startswith(("deepseek", "gpt2, every"))
        inputs = texts + list(random_texts(2000 if quick else 50_000 if everything else 10_000, 9))
        inputs += list(prose(quick or not everything)) + (
            [] if name.startswith("regex") else list(long_texts())
        )  # some of the patterns are quadratic
        if everything:
            inputs += each_code_point(quick)
        elif not quick:
            inputs += rng.sample(list(each_code_point(True)), 3000)
        batch = [(int(name == "template" and i % 2 == 0), t) for i, t in enumerate(inputs)]
        as_json = tokenizer.to_str()
        if name.startswith("gpt2"):  # the older spelling of merges
            changed = json.loads(as_json)
            changed["model"]["merges"] = [" ".join(m) for m in changed["model"]["merges"]]
            as_json = json.dumps(changed, ensure_ascii=False)
        want, got = package(tokenizer, batch), ours(program, as_json, batch)
        assert len(want) == len(got)
        versions, unexplained = set(), []
        explained = decoded = 0
        for (_, text), ids, (our_ids, our_text) in zip(batch, want, got):
            if ids != our_ids:
                reasons = {ord(c) for c in text} & depends.keys()
                explained += bool(reasons)
                versions |= reasons
                if not reasons:
                    unexplained.append((text, ids, our_ids))
            elif not ids or len(text) < 200:
                decoded += tokenizer.decode(ids, skip_special_tokens=False) != our_text.decode(errors="replace")
        print(
            f"{name}: {len(batch)} texts, {len(unexplained)} differ, {decoded} decode to something else; "
            f"{explained} differ by the Unicode version ({len(versions)} code points)",
            flush=True,
        )
        for text, ids, our_ids in unexplained[:3]:
            print(f"    {text[:60]!r}\n      package {ids[:20]}\n      ours    {our_ids[:20]}")
        if versions and name == "deepseek, every pair":
            print("    " + ", ".join(f"{a:04X}-{b:04X}" if b > a else f"{a:04X}" for a, b in ranges(versions)))
            print(
                "    of them assigned in both:",
                [
                    f"{c:04X} {unicodedata.category(chr(c))} {depends[c]}"
                    for c in sorted(versions)
                    if unicodedata.category(chr(c)) != "Cn"
                ],
            )
        failed += len(unexplained) + decoded
    return failed


def fixture(folder):
    made = trained(deepseek_pieces(), CORPUS, 620)
    described = json.loads(made.to_str())
    (folder / "tokenizer_deepseek_style.json").write_text(
        json.dumps(described, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
    )
    cases = [{"text": t, "ids": made.encode(t, add_special_tokens=False).ids} for t in EXPECTED + CORPUS]
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (folder / "tokenizer_expected.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "fixture":
        fixture(pathlib.Path(sys.argv[2]))
    elif (
        len(sys.argv) >= 3
        and sys.argv[1] == "compare"
        and all(a == "--quick" or a.startswith("--only=") for a in sys.argv[3:])
    ):
        wanted = [a.removeprefix("--only=") for a in sys.argv[3:] if a != "--quick"]
        sys.exit(compare(sys.argv[2], "--quick" in sys.argv, wanted[0] if wanted else "") > 0)
    else:
        sys.exit(__doc__)
