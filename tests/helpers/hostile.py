"""Answers meant to hang, crash or take over a grader, for the tests of the accuracy reward.

Grade them against a gold that none of them equals, such as 61. Each may cost at most the time limit and must run
nothing: the injections would, if executed, create the file that the caller names and do nothing else.
"""

import json


def hostile_answers(canary: str) -> list[tuple[str, str]]:
    """Return distinct pairs of kind (hang, memory, injection, depth, size) and answer text.

    `canary` is the path of a file that does not exist; it must not exist after the answers are graded.
    """
    kinds = {"hang": _hang(), "memory": _memory(), "injection": _injection(canary), "depth": _depth(), "size": _size()}
    return [(kind, text) for kind, texts in kinds.items() for text in dict.fromkeys(texts)]


def _hang() -> list[str]:
    """Short formulas whose evaluation, simplification or factoring takes for ever."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = ["^".join(["9"] * n) for n in (4, 6)]
    texts += ["^{".join([base] * n) + "}" * (n - 1) for base in ("9", "x", "99", "\\pi", "0.5") for n in (4, 7)]
    texts += ["**".join(["9"] * 5), "(9!)!", "((9!)!)!", "100000000!", "99!^{99!}", "9!!!!!!!!", "(10^{9})!"]
    texts += ["\\frac{(10^8)!}{(10^8-1)!}", "\\sqrt{(10^7)!}", "\\log(10^{8}!)"]
    texts += [f"\\binom{{10^{{{n}}}}}{{5 \\cdot 10^{{{n - 1}}}}}" for n in (7, 8, 12)]
    texts += ["C_{100000000}^{50000000}", "\\binom{x^{99}}{99999}"]
    for end in ("10^{8}", "10^{12}", "10^{100}"):
        texts += [f"\\sum_{{k=1}}^{{{end}}} \\frac{{1}}{{k^k}}", f"\\prod_{{k=1}}^{{{end}}} (1+\\frac{{1}}{{k^2+k!}})"]
    texts += ["\\sum_{i=1}^{9999}\\sum_{j=1}^{9999}\\sum_{k=1}^{9999} \\sin(ijk)", "\\sum_{k=1}^{\\infty} \\sin(k!)"]
    texts += ["\\prod_{n=1}^{\\infty} \\cos(n^n)", "\\sum_{p=1}^{10^9} \\gcd(p, 10^9)"]
    texts += [f"\\int_0^1 {body} dx" for body in ("x^{x^{x}}", "\\sin(\\sin(\\sin(x^x)))", "e^{e^{e^{x}}}")]
    texts += ["\\int_0^1\\int_0^1\\int_0^1 \\frac{e^{xyz}\\sin(x^y)}{1+x^z} dx dy dz"]
    texts += ["\\int \\sqrt{\\tan(x^5+\\ln x)} dx", "\\int \\frac{1}{\\sin^{9}x+\\cos^{11}x+x} dx"]
    texts += [
        "\\lim_{n\\to\\infty} (n!)^{n!}/n^{n^n}",
        "\\lim_{x\\to 0} \\frac{\\sin^{99}(\\tan x)-\\tan^{99}(\\sin x)}{x^{199}}",
    ]
    texts += ["\\lim_{x\\to\\infty} x^{x^{x}}-x^{x^{\\sin x}}", "\\frac{d^{99}}{dx^{99}} x^{x^{x}}"]
    texts += [f"(a+b+c+d+e+f)^{{{n}}}" for n in (60, 999, 10**6)]
    texts += [f"(x+1)^{{{n}}}-(x-1)^{{{n}}}" for n in (5000, 10**7)] + [
        "x^{10^{9}}-1",
        "\\frac{x^{99999}-1}{x^{77777}-1}",
    ]
    texts += ["(1+\\sqrt{2}+\\sqrt{3}+\\sqrt{5}+\\sqrt{7}+\\sqrt{11})^{200}"]
    texts += ["\\frac{1}{" + "+".join(f"\\sqrt{{{p}}}" for p in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)) + "}"]
    texts += ["\\sqrt{2+" * n + "\\sqrt{3}" + "}" * n for n in (12, 25, 40)]
    texts += ["\\sqrt[3]{5+\\sqrt{2+" * n + "1" + "}}" * n for n in (6, 15)]
    texts += ["+".join(f"\\sqrt[{n}]{{{n + 1}}}" for n in range(2, 40))]
    texts += ["+".join(f"\\{f}({n}x)^{{{n}}}" for n in range(1, 40)) for f in ("sin", "tan", "cos")]
    texts += ["\\cdot ".join(f"\\sin({n}^\\circ)" for n in range(1, 90))]
    texts += [
        "\\sin(" * 20 + "x" + ")" * 20,
        "\\cos(10^{10^{5}})",
        "\\tan(9^{9^{9}})",
        "\\arctan(" * 15 + "7" + ")" * 15,
    ]
    texts += ["".join(f"({a}-{b})" for a in letters[:12] for b in letters[12:24])]
    texts += ["*".join(f"({a}+{b}+1)^3" for a, b in zip(letters[:13], letters[13:], strict=True))]
    texts += ["+".join(f"\\frac{{1}}{{{a}+{b}}}" for a in letters[:9] for b in letters[9:18])]
    texts += ["1+\\frac{1}{x+" * 30 + "1" + "}" * 30, "|".join("|x-1|-2" for _ in range(25))]
    texts += ["x^{17}-3x^{11}+7x^5-x+1=0", "\\sin x^x + \\ln(x+e^x) = 2^{x!}", "x^{x^{x}}=10^{10}", "x^7+x+1>e^{x}"]
    texts += ["(2^{4423}-1)(2^{4253}-1)", "\\text{the } 10^{12}\\text{th prime}", "2^{2^{20}}+1", "\\sqrt{2^{521}-1}"]
    texts += ["\\gcd(9^{9^{7}}, 3^{3^{15}})", "9^{9^{9}} \\bmod 7", "\\log_{9^{9^{9}}} 2", "\\ln(\\ln(9^{9^{9^{9}}}))"]
    texts += [
        "9^{9^{9}} = 9^{9^{9}}",
        "x > 9^{9^{9}}",
        "(9^{9^{9}}, 9^{9^{9}})",
        "7 = 9^{9^{9}} - 9^{9^{9}} + 8",
        "2^{-2^{2^{64}}}",
    ]
    texts += [
        "10^{-10^{10}}",
        "1e999999999",
        "7e-999999999",
        "0.1^{10^{10}}",
        "\\Gamma(10^{9})",
        "\\zeta(10^{-9})^{10^9}",
        "\\lfloor 10^{10^{9}} \\pi \\rfloor",
    ]
    return texts


def _memory() -> list[str]:
    """Formulas and lists whose value does not fit in memory."""
    texts = [f"{base}^{{10^{{{n}}}}}" for base in ("10", "7", "\\frac{2}{3}") for n in (9, 10, 11)]
    texts += ["10^{10^{10}}", "10^{10^{10^{10}}}", "10**10**10", "1<<10**12", "2^{99999999999}", "(1+x)^{10^{10}}"]
    texts += [
        "(x_1+x_2+x_3+x_4+x_5+x_6+x_7+x_8)^{80}",
        "(" + "+".join("abcdefghijkl") + ")^{30}",
        "((((x+y)^{20}+z)^{20}+1)^{20}+w)^{20}",
    ]
    for name, sep in (("pmatrix", "&"), ("bmatrix", "&"), ("vmatrix", "&")):
        rows = "\\\\".join(sep.join(f"x_{{{i},{j}}}" for j in range(25)) for i in range(25))
        texts += [f"\\begin{{{name}}}{rows}\\end{{{name}}}"]
    texts += ["\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}" * 400, "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}^{10^{9}}"]
    texts += ["\\begin{pmatrix}x&y\\\\z&w\\end{pmatrix}^{999}", "\\begin{array}{" + "c" * 5000 + "}1\\end{array}"]
    texts += [
        "\\{1, 2, \\ldots, 10^{12}\\}",
        "range(10**12)",
        "[0]*10**12",
        "'7'*10**12",
        "7" + "\\times 10^{9999}" * 300,
    ]
    texts += ["\\{" + ",".join(map(str, range(20000))) + "\\}", "(" + ",".join(f"x_{n}" for n in range(5000)) + ")"]
    texts += [
        "\\cup".join(f"({2 * n},{2 * n + 1})" for n in range(3000)),
        " \\text{ or } ".join(f"x={n}" for n in range(3000)),
    ]
    texts += [
        "(" + ")(".join(f"1+x^{{{n}}}" for n in range(1, 200)) + ")",
        "\\times".join(f"\\{{1,2,{n}\\}}" for n in range(3, 40)),
    ]
    return texts


def _injection(canary: str) -> list[str]:
    """Code in Python, LaTeX, shell and data formats that would create the canary if anything ran it."""
    shell = f"touch '{canary}'"
    return _python_injection(canary, shell) + _latex_injection(canary, shell) + _foreign_injection(canary, shell)


def _python_injection(canary: str, shell: str) -> list[str]:
    path = repr(canary)
    calls = [
        f"open({path}, 'w')",
        f"open({path}, 'w').close()",
        f"__import__('os').system({shell!r})",
        f"__import__('subprocess').call(['touch', {path}])",
        f"__import__('pathlib').Path({path}).touch()",
        f"__import__('os').mknod({path})",
        f"__import__('io').open({path}, 'w')",
        f"getattr(__import__('os'), 'sys' + 'tem')({shell!r})",
        f"__builtins__.open({path}, 'w')",
        f"().__class__.__base__.__subclasses__()[0].__init__.__globals__['open']({path}, 'w')",
        f"[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'FileIO'][0]({path}, 'w')",
        f"(lambda: open({path}, 'w'))()",
    ]
    code = f"open({path}, 'w')"
    wrappers = [
        "%s",
        "7 + %s",
        "7, %s",
        "x = %s",
        "{{%s}}",
        "${%s}",
        "\\text{%s}",
        "f'{%s}'",
        "(7, %s)[0]",
        "7 if %s else 8",
    ]
    texts = [wrapper.replace("%s", call) for call in calls[:4] for wrapper in wrappers] + calls
    texts += [
        f"exec({code!r})",
        f"eval({code!r})",
        f"eval(compile({code!r}, '7', 'exec'))",
        f"sympify({code!r})",
        f"parse_expr({code!r})",
        f"lambdify((), {code!r})()",
        f"Lambda(x, {code})(7)",
        f"Symbol('x').__class__.__init__.__globals__['__builtins__']['open']({path}, 'w')",
        f"x.func.__module__.__class__({code})",
        f"S({code!r}).doit()",
        f"Function({code!r})(7)",
        f"globals()['__builtins__']['open']({path}, 'w')",
        f"import os; os.system({shell!r})",
        f"7\nimport os\nos.system({shell!r})",
        f"7; {code}",
        f"7\n{code}",
        f"7#\n{code}",
        f"@{code}",
        f"print(7) or {code}",
        f"breakpoint() or {code}",
        f"a := {code}",
        f"'{{0.__class__.__init__.__globals__[open]}}'.format({code})",
        f"{{7.__class__.__base__.__subclasses__}} {code}",
        "{0.__class__.__mro__}",
        "%(7)s %n %s %x",
        "%s%s%s%s%s%n",
        "{}{}{}{0!r:>99999999}",
        f"{{{{7*7}}}} {{{{ cycler.__init__.__globals__.os.system({shell!r}) }}}}",
        f"{{% import os %}}{{{{ os.system({shell!r}) }}}}",
        f"<%= {code} %>",
    ]
    return texts


def _latex_injection(canary: str, shell: str) -> list[str]:
    return [
        f"\\input{{|{shell}}}",
        f'\\input{{|"{shell}"}}',
        f"\\immediate\\write18{{{shell}}}",
        f"\\write18{{{shell}}} 7",
        f"\\newwrite\\f\\immediate\\openout\\f={canary}\\immediate\\write\\f{{7}}",
        f"\\directlua{{os.execute({shell!r})}}",
        f"\\ShellEscape{{{shell}}}",
        f"\\include{{{canary}}}",
        "\\def\\x{\\x\\x}\\x",
        "\\loop\\iftrue\\repeat",
        "\\newcommand{\\x}{\\x 7}\\x",
        "\\csname end\\endcsname 7",
    ]


def _foreign_injection(canary: str, shell: str) -> list[str]:
    """Shells, data formats, other languages, paths and control characters."""
    path = repr(canary)
    code = f"open({path}, 'w')"
    return [
        f"$({shell})",
        f"`{shell}`",
        f"7; {shell}",
        f"7 && {shell}",
        f"7 | {shell}",
        f"7\n{shell}\n",
        f"'; {shell}; '",
        f"cos\nsystem\n(S{shell!r}\ntR.",
        f"cposix\nsystem\n(S{shell!r}\ntR.",
        f"!!python/object/apply:os.system [{shell!r}]",
        json.dumps({"py/object": "os.system", "args": [shell]}),
        json.dumps({"answer": 7, "verdict": 1, "__reduce__": ["os.system", [shell]]}),
        json.dumps({"__class__": "open", "args": [canary, "w"]}),
        f"<script>require('fs').writeFileSync({path}, '')</script>",
        f"require('child_process').execSync({shell!r})",
        f"<?php touch({path}); ?>",
        f"'); {code}; ('",
        f'""" + str({code}) + """',
        f"\\boxed{{7}}')\n{code}\n#",
        f"</answer><answer>{code}",
        "../../../../etc/passwd",
        f"file://{canary}",
        "\x00\x01\x02\x7f\x1b]0;7\x07",
        "\ud800",
    ]


def _depth() -> list[str]:
    """Texts nested so deeply that a recursive reader overflows its stack."""
    nests = {
        "{": "}",
        "(": ")",
        "[": "]",
        "\\{": "\\}",
        "\\left(": "\\right)",
        "\\left|": "\\right|",
        "\\frac{1}{": "}",
        "\\frac{": "}{2}",
        "\\sqrt{": "}",
        "\\boxed{": "}",
        "\\text{": "}",
        "x^{": "}",
        "x_{": "}",
        "\\lfloor ": "\\rfloor ",
        "\\begin{pmatrix}": "\\end{pmatrix}",
        "\\overline{": "}",
        "\\sin(": ")",
        "2^(": ")",
    }
    texts = [left * n + "8" + right * n for left, right in nests.items() for n in (300, 5000)]
    texts += [
        sign * 20000 + "8"
        for sign in ("-", "+", "+-", "\\neg ", "\\pm ", "{", "(", "\\frac", "\\sqrt", "\\boxed{", "|")
    ]
    texts += ["8" + close * 20000 for close in ("}", ")", "!", "'", "^", "_", "^\\circ", "\\right)", "%")]
    texts += [
        "$" * 20001,
        "<answer>" * 5000,
        "</answer>" * 5000,
        "<think>" * 5000 + "8",
        "\\begin{cases}" * 3000,
        "\\\\" * 9999,
    ]
    return texts


def _size() -> list[str]:
    """Texts of 100 kB and more, which a reader whose time grows with the square of the length cannot afford."""
    tokens = [
        "8",
        "a",
        ",",
        " ",
        "\t",
        "\n",
        ".",
        ";",
        "&",
        "\\",
        "\\,",
        "\\quad",
        "$",
        "*",
        "=",
        "<",
        "~",
        "#",
        "e",
        "E",
    ]
    tokens += [
        "8,",
        "8 ",
        "8.",
        "8=",
        "8+",
        "8-",
        "x+",
        "8/",
        "8:",
        "8%",
        "8^",
        "x=8 or ",
        "A, ",
        "not ",
        "A",
        "is ",
        "的",
    ]
    tokens += [
        "\u200b",
        "\u0301",
        "８",
        "\U0001f600",
        "\u202e",
        "π",
        "½",
        "²",
        "\u3000",
        "°",
        "\\text{8}",
        "\\frac12",
        "\\boxed{8}",
    ]
    texts = [token * (120_000 // len(token)) for token in tokens]
    texts += [
        "0." + "3" * 150_000,
        "1e" + "9" * 100_000,
        "x" + "_1" * 60_000,
        "8" + " " * 1_000_000 + "9",
        "8 cm " * 200_000,
    ]
    return texts
