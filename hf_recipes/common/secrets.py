"""Access tokens and keys in texts: one definition for recipes, messages and pushed files. Standard library only.

`find_secret` names the kind of the first secret in a text, `mask_secrets` takes every one out. Most are found by the
form that their issuer gives them (a fixed beginning, then letters and digits); keys without a form of their own, such
as the 40 hexadecimal digits of an older wandb key, only where a name like `api_key` stands before them, since a commit
or a fingerprint looks the same.

The forms follow gitleaks' rules (compared on 2026-11-27 with texts drawn from its rules of 2026-07-22), and what these
lack: the Hub's other tokens, Neptune, newer wandb keys. What it finds near a service's name only is looked for here
behind names such as `api_key`. The beginnings are looked for first, as plain text: a file without any costs
no regular expression, so that `check` stays quick and a tokenizer of 30 MB is searched in a moment.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

# Keys of upstream's classes whose value is a secret, whatever it looks like.
SECRET_KEYS = ("token", "hub_token", "push_to_hub_token", "use_auth_token", "api_key", "password")

_NAMES = (
    r"(?:api|access|secret|private|account|auth)[_-]?(?:access[_-]?)?(?:key|token)"
    r"|(?:hub|hf|auth|bearer|refresh|session|tracking)[_-]?token|client[_-]?secret|secret|password|passwd|credentials?"
)
# Of a key: "wandb_api_key", "mlflow_tracking_password".
SECRET_NAME = re.compile(rf"(?i)(?:^|.*[_.-])(?:{_NAMES})", re.S)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One kind of secret: how it begins (plain text, for a quick look) and its regular expression."""

    kind: str
    begins: tuple[str, ...]
    pattern: str


def _form(kind: str, begins: str, pattern: str) -> Form:
    return Form(kind=kind, begins=tuple(begins.split()), pattern=pattern)


_ALONE = r"(?<![A-Za-z0-9])"  # not inside a longer word; the Hub's tokens are found there, too
FORMS = (
    _form(
        "a Hub access token", "hf_ api_org_", r"(?:hf_|api_org_)(?:(?:oauth|jwt|app)_[\w.~+/-]{16,}|[A-Za-z0-9]{20,})"
    ),
    _form("a Weights & Biases key", "wandb_v1_", r"wandb_v1_[\w-]{20,}"),
    _form("a Neptune token", "eyJhcGlfYWRkcmVzcyI6", r"eyJhcGlfYWRkcmVzcyI6[\w+/=-]{16,}"),
    _form("a JSON web token", "eyJ", r"(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    _form("a Databricks token", "dapi", _ALONE + r"dapi[0-9a-f]{32}"),
    _form(
        "an AWS key",
        "AKIA ASIA ABIA ACCA A3T",
        _ALONE + r"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    ),
    _form("an AWS key", "ABSK bedrock-api-key-", r"ABSK[A-Za-z0-9+/]{100,}|bedrock-api-key-[A-Za-z0-9+/=]{20,}"),
    _form("a Google key", "AIza ya29. GOCSPX-", r"AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"),
    _form(
        "an Azure key", "AccountKey= SharedAccessKey= sig=", r"(?:AccountKey=|SharedAccessKey=|[?&]sig=)[\w+/=%-]{30,}"
    ),
    _form("an Azure secret", "Q~", r"[\w~.]{3}[0-9]Q~[\w~.-]{31,34}"),
    _form("a GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_", r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{40,}"),
    _form(
        "a GitLab token",
        "glpat- gldt- glrt- glcbt- glptt- glft- glimt- glagent- glsoat- glffct- gloas-",
        _ALONE + r"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|ffct|oas)-[\w-]{20,}",
    ),
    _form("a Slack token", "xox xapp-", r"xox[abceoprs]-(?:[\w-]{10,})|xapp-[0-9]-[\w-]{20,}"),
    _form("a Slack webhook", "hooks.slack.com/", r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/+-]{20,}"),
    _form("a Discord webhook", "/api/webhooks/", r"discord(?:app)?\.com/api/webhooks/[0-9]+/[\w-]{30,}"),
    _form("an Anthropic key", "sk-ant-", r"sk-ant-[\w-]{20,}"),
    _form("an OpenAI key", "sk-", _ALONE + r"sk-(?:(?:proj|svcacct|admin|or-v1|lf)-[\w-]{20,}|[A-Za-z0-9]{32,})"),
    _form("a Groq key", "gsk_", _ALONE + r"gsk_[A-Za-z0-9]{40,}"),
    _form("an xAI key", "xai-", _ALONE + r"xai-[A-Za-z0-9]{60,}"),
    _form("a Replicate token", "r8_", _ALONE + r"r8_[A-Za-z0-9]{35,}"),
    _form("a Perplexity key", "pplx-", _ALONE + r"pplx-[A-Za-z0-9]{40,}"),
    _form("an NVIDIA key", "nvapi-", r"nvapi-[\w-]{40,}"),
    _form("a Together key", "tgp_v1_", r"tgp_v1_[\w-]{20,}"),
    _form("a LangSmith key", "lsv2_", r"lsv2_(?:pt|sk)_[0-9a-f]{32}\w*"),
    _form("a Kaggle token", "KGAT_", r"KGAT_[0-9a-f]{32}"),
    _form("a Docker token", "dckr_", r"dckr_(?:pat|oat)_[\w-]{20,}"),
    _form("an npm token", "npm_", _ALONE + r"npm_[A-Za-z0-9]{36}"),
    _form("a PyPI token", "pypi-AgE", r"pypi-AgE[\w-]{40,}"),
    _form("a Vault token", "hvs. hvb.", _ALONE + r"hv[sb]\.[\w-]{60,}"),
    _form("a Stripe key", "k_live_ k_test_ k_prod_", r"[sr]k_(?:live|test|prod)_[A-Za-z0-9]{20,}"),
    _form("a SendGrid key", "SG.", r"SG\.[\w-]{20,24}\.[\w-]{39,50}"),
    _form("a Twilio key", "SK", _ALONE + r"SK[0-9a-fA-F]{32}(?![A-Za-z0-9])"),
    _form("a DigitalOcean token", "dop_v1_ doo_v1_ dor_v1_", r"do[por]_v1_[0-9a-f]{60,}"),
    _form("a Telegram token", ":AA", r"(?<![0-9])[0-9]{8,10}:AA[\w-]{33}"),
    _form("a Grafana token", "glc_ glsa_ eyJrIjoi", _ALONE + r"(?:glc_[\w+/]{32,}|glsa_\w{40,}|eyJrIjoi[\w+/=-]{60,})"),
    _form("a Sentry token", "sntrys_ sntryu_", r"sntrys_eyJ[\w+/=]{40,}|sntryu_[0-9a-f]{64}"),
    _form("a Shopify token", "shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    _form("a Notion token", "ntn_", _ALONE + r"ntn_[0-9]{11}[A-Za-z0-9]{35}"),
    _form("a Linear key", "lin_api_", r"lin_api_[A-Za-z0-9]{40}"),
    _form("a Postman key", "PMAK-", r"PMAK-[0-9a-fA-F]{24}-[0-9a-fA-F]{34}"),
    _form("a Pulumi token", "pul-", _ALONE + r"pul-[0-9a-f]{40}"),
    _form("a Doppler token", "dp.pt.", _ALONE + r"dp\.pt\.[A-Za-z0-9]{43}"),
    _form("a Fly.io token", "fm1 fm2_ fo1_", _ALONE + r"(?:fm1[ar]_[\w+/]{100,}|fm2_[\w+/]{100,}|fo1_[\w-]{43})"),
    _form("a Heroku key", "HRKU-AA", r"HRKU-AA[\w-]{58}"),
    _form("a PlanetScale token", "pscale_", r"pscale_(?:tkn|oauth|pw)_[\w=.-]{32,}"),
    _form("a Dynatrace token", "dt0c01.", r"dt0c01\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{64}"),
    _form("a Cloudflare key", "v1.0-", _ALONE + r"v1\.0-[0-9a-f]{24}-[0-9a-f]{146}"),
    _form("a RubyGems token", "rubygems_", r"rubygems_[0-9a-f]{48}"),
    _form("a 1Password token", "ops_eyJ", r"ops_eyJ[\w+/=]{100,}"),
    _form("a private key", "PRIVATE KEY", r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:[\w+/=\r\n\\]{16,})?"),
    _form("a password in a URL", "://", r"(?<=://)[^\s/:@\"'<>\\|]{1,80}:[^\s/:@\"'<>\\|]{3,200}@(?=[\w\[])"),
)
# A name like `api_key`, then a value that looks drawn: 16 characters and more, digits and letters among them.
_NAMED = _form(
    "a key or password",
    "key KEY token TOKEN secret SECRET passw PASSW credential CREDENTIAL Key Token Secret Passw",
    rf"(?i:{_NAMES})[\"']?[ \t]*[:=][ \t]*[\"']?"
    r"(?=[\w+/=.~-]{0,80}[0-9])(?=[\w+/=.~-]{0,80}[A-Za-z])[\w+/=.~-]{16,}",
)
_ESCAPES = ("\\u00", "\\x", "\\U0000", "\\\n")


def find_secret(text: str | bytes, known: tuple[str, ...] = ()) -> str:
    """ "a Hub access token", ...: the kind of a secret in a text, written out or with the escapes of JSON and YAML; ""
    if there is none. `known`: Hub tokens of this machine, of any form."""
    found = locate_secret(text, known)
    return found[0] if found else ""


def locate_secret(text: str | bytes, known: tuple[str, ...] = ()) -> tuple[str, int] | None:
    """(the kind of the first secret that is found, the line on which it begins), or None."""
    for shown in (text, _unescape(text)):
        if shown is None:
            continue
        for token in known:
            where = shown.find(token if isinstance(shown, str) else token.encode())  # type: ignore[arg-type]
            if where >= 0:
                return FORMS[0].kind, _line(shown, where)
        for form in (*FORMS, _NAMED):
            if _may_hold(form, shown):
                match = _compiled(form.pattern, isinstance(shown, bytes)).search(shown)
                if match:
                    return form.kind, _line(shown, match.start())
    return None


def mask_secrets(text: str) -> str:
    """`text` with every secret replaced: `hf_***` for the Hub's tokens, `***` for others, a name before it kept."""
    masked = _masked(text)
    plain = _unescape(masked)
    return _masked(plain) if isinstance(plain, str) and find_secret(plain) else masked


def is_secret_name(key: str) -> bool:
    """Whether a key's value is a secret by the key's name."""
    return key.lower() in SECRET_KEYS or SECRET_NAME.fullmatch(key) is not None


def _masked(text: str) -> str:
    for form in (*FORMS, _NAMED):
        if _may_hold(form, text):
            text = _compiled(form.pattern, False).sub(_replacement(form), text)
    return text


def _replacement(form: Form) -> object:
    if form is FORMS[0]:
        return "hf_***"
    if form is _NAMED:
        return lambda match: re.sub(r"([:=][ \t]*[\"']?)[^:=]*$", r"\1***", match[0])
    return "***@" if "://" in form.begins else "***"


def _may_hold(form: Form, text: str | bytes) -> bool:
    if isinstance(text, str):
        return any(begin in text for begin in form.begins)
    return any(begin.encode() in text for begin in form.begins)


def _unescape(text: str | bytes) -> str | bytes | None:
    """The text with the escapes of plain characters written out (`\\u0051`, `\\x51`); None where it has none."""
    if isinstance(text, str):
        if not any(escape in text for escape in _ESCAPES):
            return None
        return _escape_pattern(False).sub(lambda match: chr(int(next(filter(None, match.groups()), "0"), 16)), text)
    if not any(escape.encode() in text for escape in _ESCAPES):
        return None
    return _escape_pattern(True).sub(lambda match: bytes([int(next(filter(None, match.groups()), b"0"), 16)]), text)


@functools.cache
def _escape_pattern(of_bytes: bool) -> re.Pattern:
    code = r"([0-7][0-9A-Fa-f])"
    return _compiled(rf"\\+(?:u00{code}|x{code}|U000000{code})", of_bytes)


@functools.cache
def _compiled(pattern: str, of_bytes: bool) -> re.Pattern:
    return re.compile(pattern.encode()) if of_bytes else re.compile(pattern, re.ASCII)


def _line(text: str | bytes, where: int) -> int:
    return 1 + (text.count("\n", 0, where) if isinstance(text, str) else text.count(b"\n", 0, where))
