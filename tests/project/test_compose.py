"""docker-compose.yml, Dockerfile and .dockerignore: valid by the compose schema, safe, and in step with each other.

No Docker engine is needed. The schema of the compose specification comes with the package check-jsonschema.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.helpers.places import REPO

SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "CLIP_SCGI_AUTH")
OURS = ("server", "services", "worker-cpu", "worker-gpu", "deploy")


@pytest.fixture(scope="module")
def text() -> str:
    return (REPO / "docker-compose.yml").read_text()


@pytest.fixture(scope="module")
def compose(text) -> dict:
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def schema() -> dict:
    found = importlib.util.find_spec("check_jsonschema")
    if found is None or found.origin is None:
        pytest.fail("check-jsonschema, which has the compose schema, is not installed: pip install 'clip-scgi[dev]'")
    path = Path(found.origin).parent / "builtin_schemas/vendor/compose-spec.json"
    return json.loads(path.read_text())


def _errors(compose: dict, schema: dict) -> list:
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return list(validator(schema).iter_errors(compose))


def _environment(service: dict) -> dict:
    return service.get("environment", {})


def test_the_file_follows_the_compose_specification(compose, schema):
    problems = [f"{'/'.join(map(str, e.path))}: {e.message}" for e in _errors(compose, schema)]
    assert problems == []


@pytest.mark.parametrize("change", ["ports", "depends_on", "unknown"])
def test_the_schema_finds_mistakes(compose, schema, change):
    server = dict(compose["services"]["server"])
    server[change] = {"ports": {"a": 1}, "depends_on": {"redis": {"condition": "ready"}}, "unknown": 1}[change]
    wrong = compose | {"services": compose["services"] | {"server": server}}
    assert _errors(wrong, schema)


def test_all_services_exist(compose):
    assert set(compose["services"]) == {"postgres", "redis", *OURS}
    assert compose["services"]["worker-gpu"]["profiles"] == ["gpu"]
    (device,) = compose["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_no_secret_has_a_default_or_a_value(text):
    for name in SECRETS:
        uses = re.findall(r"\$\{" + name + r"([^}]*)\}", text)
        assert uses
        assert all(use.startswith(":?") for use in uses), f"{name} has a default"
        assert not re.search(rf"\${name}\b", text)
    for line in (REPO / ".env.example").read_text().splitlines():
        assert line.startswith("#") or line.endswith("="), f"a value in .env.example: {line}"


def test_ports_are_published_on_localhost_only(compose):
    for name, service in compose["services"].items():
        assert service.get("network_mode") is None
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens beyond localhost"
    assert [name for name, service in compose["services"].items() if service.get("ports")] == ["server"]


def test_the_api_needs_a_password_and_every_client_has_it(compose):
    services = compose["services"]
    for name in ("server", "services"):
        assert "PREFECT_SERVER_API_AUTH_STRING" in _environment(services[name])
    for name in ("services", "worker-cpu", "worker-gpu", "deploy"):
        assert _environment(services[name])["PREFECT_API_AUTH_STRING"].startswith("${CLIP_SCGI_AUTH:?")
        assert _environment(services[name])["PREFECT_API_URL"] == "http://server:4200/api"


def test_services_start_in_order_once_their_dependencies_are_healthy(compose):
    services = compose["services"]
    wanted = {
        "server": {"postgres", "redis"},
        "services": {"server"},
        "worker-cpu": {"server", "services"},
        "worker-gpu": {"server", "services"},
        "deploy": {"server"},
    }
    for name, before in wanted.items():
        assert set(services[name]["depends_on"]) == before
        for other, rule in services[name]["depends_on"].items():
            assert rule["condition"] == "service_healthy"
            assert "healthcheck" in services[other], f"{name} waits for {other}, which has no health check"
    running = [name for name in services if name != "deploy"]
    assert all("healthcheck" in services[name] for name in running)


def test_every_server_process_shares_postgres_and_redis(compose):
    for name in ("server", "services"):
        environment = _environment(compose["services"][name])
        assert environment["PREFECT_SERVER_DATABASE_DRIVER"] == "postgresql+asyncpg"
        assert environment["PREFECT_MESSAGING_BROKER"] == "prefect_redis.messaging"
        assert environment["PREFECT_SERVER_EVENTS_CAUSAL_ORDERING"] == "prefect_redis.ordering"
        assert environment["PREFECT_SERVER_DOCKET_URL"].startswith("redis://")
    assert "--no-services" in compose["services"]["server"]["command"]
    migrate = "PREFECT_SERVER_DATABASE_MIGRATE_ON_START"
    assert _environment(compose["services"]["services"])[migrate] == "false"


def test_all_settings_exist_in_prefect(compose):
    """Prefect silently ignores a variable that it does not know."""
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    known = set(_get_settings_fields(Settings)) | {"PREFECT_MESSAGING_BROKER", "PREFECT_MESSAGING_CACHE"}
    for service in compose["services"].values():
        for name in _environment(service):
            if name.startswith("PREFECT_") and not name.startswith("PREFECT_REDIS_"):
                assert name in known


def test_artifacts_have_one_volume_and_datasets_are_read_only(compose):
    for name in ("worker-cpu", "worker-gpu"):
        service = compose["services"][name]
        volumes = service["volumes"]
        assert volumes[0] == "artifacts:/artifacts"
        assert volumes[1]["target"] == "/data"
        assert volumes[1]["read_only"] is True
        assert _environment(service)["CLIP_SCGI_HOME"] == "/artifacts"
    assert set(compose["volumes"]) == {"artifacts", "postgres", "redis"}


def test_images_are_pinned_and_no_service_gains_privileges(compose):
    for name, service in compose["services"].items():
        tag = service["image"].partition(":")[2]
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']} is not pinned"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
    for line in (REPO / "Dockerfile").read_text().splitlines():
        if line.startswith("FROM"):
            assert re.search(r":\d+\.\d+\.\d+", line)


def test_the_image_runs_as_a_plain_user_and_contains_only_the_packages():
    lines = (REPO / "Dockerfile").read_text().splitlines()
    last_from = max(number for number, line in enumerate(lines) if line.startswith("FROM"))
    users = [line.split()[1] for line in lines[last_from:] if line.startswith("USER")]
    assert users == ["clip"]
    copied = {line.split()[-1] for line in lines if line.startswith("COPY") and "--from" not in line} - {"./"}
    allowed = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied <= allowed
    assert all((REPO / name).exists() for name in allowed)
    assert (REPO / ".dockerignore").read_text().splitlines()[1] == "*"


def test_the_dockerfile_installs_from_the_lock():
    text = (REPO / "Dockerfile").read_text()
    assert "--constraint requirements.lock" in text
    lock = (REPO / "requirements.lock").read_text()
    for package in ("prefect", "prefect-redis", "redis", "asyncpg"):
        assert re.search(rf"^{package}==", lock, re.MULTILINE), f"{package} is not locked"


def test_docker_compose_accepts_it(tmp_path):
    """Docker's compose plugin reads the file, where it is installed; this needs no engine."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker's compose plugin is not installed")
    environment = dict.fromkeys(SECRETS, "secret") | {"CLIP_SCGI_DATA": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [docker, "compose", "--profile", "gpu", "-f", str(REPO / "docker-compose.yml"), "config", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
