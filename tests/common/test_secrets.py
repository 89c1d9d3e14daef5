"""What counts as a secret, in a text as people and programs write it, and what does not."""

from __future__ import annotations

import glob
import re
from pathlib import Path

import pytest

from hf_recipes.common.secrets import find_secret, is_secret_name, locate_secret, mask_secrets

# Put together here, so that no file of this repository holds a text that looks like a token.
HUB = "hf_" + "Q" * 34
SECRETS = {
    HUB: "a Hub access token",
    f"768{HUB}": "a Hub access token",
    f"x{HUB}y_z": "a Hub access token",
    "hf_oauth_" + "eyJ" + "Q" * 40 + "." + "Q" * 10: "a Hub access token",
    "api_org_" + "Q" * 34: "a Hub access token",
    "hf_\\u0051" + "Q" * 33: "a Hub access token",
    "h\\u0066_" + "Q" * 34: "a Hub access token",
    "hf\\x5f" + "Q" * 34: "a Hub access token",
    "wandb_v1_" + "Ab1" * 20: "a Weights & Biases key",
    "wandb_api_key: " + "0123456789abcdef" * 2 + "01234567": "a key or password",
    '"COMET_API_KEY": "' + "Ab1Cd" * 5 + '"': "a key or password",
    "eyJhcGlfYWRkcmVzcyI6" + "Q" * 40: "a Neptune token",
    "CLEARML_API_SECRET_KEY=" + "Ab1Cd" * 8: "a key or password",
    "mlflow_tracking_password = " + "s3cr3t" * 4: "a key or password",
    "dapi" + "0123456789abcdef" * 2: "a Databricks token",
    "https://user:pa55word@mlflow.example.com/x": "a password in a URL",
    "AKIA" + "IOSFODNN7EXAMPL3": "an AWS key",
    "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCY12345678": "a key or password",
    "AIza" + "Q" * 35: "a Google key",
    "DefaultEndpointsProtocol=https;AccountKey=" + "Qw1/" * 21 + "==": "an Azure key",
    "ghp_" + "A1" * 18: "a GitHub token",
    "github_pat_" + "A1" * 41: "a GitHub token",
    "glpat-" + "A1" * 10: "a GitLab token",
    "glagent-" + "A1" * 25: "a GitLab token",
    "glsa_" + "A1" * 16 + "_" + "1a2b3c4d": "a Grafana token",
    "sntryu_" + "1a" * 32: "a Sentry token",
    "shpat_" + "1a" * 16: "a Shopify token",
    "ntn_" + "1" * 11 + "A" * 35: "a Notion token",
    "lin_api_" + "a1" * 20: "a Linear key",
    "PMAK-" + "1a" * 12 + "-" + "1a" * 17: "a Postman key",
    "pul-" + "1a" * 20: "a Pulumi token",
    "dp.pt." + "A1" * 21 + "B": "a Doppler token",
    "fm2_" + "A1" * 60: "a Fly.io token",
    "HRKU-AA" + "A1" * 29: "a Heroku key",
    "pscale_tkn_" + "A1" * 16: "a PlanetScale token",
    "dt0c01." + "A1" * 12 + "." + "A1" * 32: "a Dynatrace token",
    "v1.0-" + "1a" * 12 + "-" + "1a" * 73: "a Cloudflare key",
    "rubygems_" + "1a" * 24: "a RubyGems token",
    "ops_eyJ" + "A1" * 60: "a 1Password token",
    "xoxb-" + "123456789012-123456789012-abcdefABCDEF": "a Slack token",
    "sk-ant-api03-" + "A1" * 46: "an Anthropic key",
    "sk-proj-" + "A1" * 40: "an OpenAI key",
    "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIEowIBAAKCAQEA": "a private key",
}


@pytest.mark.parametrize(("text", "kind"), SECRETS.items(), ids=range(len(SECRETS)))
def test_a_secret_is_found_in_text_and_in_bytes_and_masked(text: str, kind: str):
    assert find_secret(text) == find_secret(text.encode()) == kind
    assert locate_secret(f"one\ntwo\n{text}\n".encode()) == (kind, 3)
    masked = mask_secrets(f"before {text} after")
    assert find_secret(masked) == "" and "***" in masked and masked.startswith("before ") and "after" in masked
    drawn = re.findall(r"(?=[A-Za-z/+]*[0-9Q])[A-Za-z0-9/+]{8,}", text)[-1]
    assert drawn[-8:] not in masked


@pytest.mark.parametrize(
    "text",
    [
        "0123456789abcdef0123456789abcdef01234567",  # a commit
        "revision: 0123456789abcdef0123456789abcdef01234567",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "hf_recipes",
        "max_new_tokens: 1234567890123456",
        "pad_token: <|finetune_right_pad_id|>",
        "eos_token: <|endoftext|>",
        "http://127.0.0.1:8080/x@y",
        "s3://bucket/path:80@2",
        "task-specific-model-name-which-is-quite-long-0123456789",
        "set HF_TOKEN to a token with write access",
        "run 20261127T101500Z-4f2a9c1b7d",
        "\\u00e9t\\u00e9",
    ],
)
def test_an_ordinary_text_is_no_secret(text: str):
    assert find_secret(text) == find_secret(text.encode()) == "" and mask_secrets(text) == text


def test_no_recipe_and_no_page_of_this_repository_holds_one():
    paths = [*glob.glob("recipes/**/*.yaml", recursive=True), *glob.glob("docs/**/*.md", recursive=True), "README.md"]
    assert {path: found for path in paths if (found := find_secret(Path(path).read_text(encoding="utf-8")))} == {}


def test_keys_are_secret_by_their_names():
    secret = ("token", "hub_token", "wandb_api_key", "AWS_SECRET_ACCESS_KEY", "mlflow_tracking_password", "api-key")
    plain = ("eos_token", "max_new_tokens", "add_special_tokens", "tokens_column", "key", "metric_for_best_model")
    assert [is_secret_name(name) for name in (*secret, *plain)] == [True] * len(secret) + [False] * len(plain)
