"""Create the automations of a file on the server of PREFECT_API_URL, or update those that exist.

python deployments/automations/apply.py https://hooks.slack.com/services/...    a webhook that takes {"text": ...}
python deployments/automations/apply.py sendgrid-email/operators                a notification block: TYPE/NAME
"""

import argparse
import sys
from pathlib import Path
from uuid import UUID

import httpx
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

WEBHOOK = "dreamgrid-alerts"
"""Name of the notification block that is created for a webhook."""
LOST = "dreamgrid-lost"
"""The automation that waits for heartbeats."""
FLOW = "dream-collection"
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
MAX_SECONDS, PREFECTS_SECONDS = 30, 180
"""Seconds between two heartbeats: the most that the automation allows, and the default of Prefect."""


def main() -> None:
    """Apply the automations to the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="URL|TYPE/NAME", help="webhook, or notification block of the server")
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("alerts.yaml"), help="the automations")
    arguments = parser.parse_args()
    if not PREFECT_API_URL.value():
        parser.error("PREFECT_API_URL is not set: set it to the API of your Prefect server")
    try:
        with get_client(sync_client=True) as client:
            names = apply(client, arguments.file, notification_block(client, arguments.target))
            if LOST in names:
                warn_of_slow_heartbeats(client)
    except ObjectNotFound:
        sys.exit(f"the server has no notification block {arguments.target}: create it in the Prefect UI under Blocks")
    except httpx.HTTPError as error:
        sys.exit(f"the Prefect server failed: {error}")


def notification_block(client: SyncPrefectClient, target: str) -> UUID:
    """Return the id of a notification block. For a webhook, create or update its block first."""
    if target.startswith(("http://", "https://")):
        block = CustomWebhookNotificationBlock(
            name=WEBHOOK,
            url="{{url}}",  # as a secret, because everybody who knows the address can post there
            json_data={"text": "{{subject}}\n{{body}}"},
            secrets={"url": target},
        )
        block.save(WEBHOOK, overwrite=True)
        target = f"custom-webhook/{WEBHOOK}"
    block_type, _, name = target.partition("/")
    return client.read_block_document_by_name(name, block_type).id


def apply(client: SyncPrefectClient, file: Path, block: UUID) -> list[str]:
    """Create or update each automation by its name, and return the names. One that was switched off stays off."""
    names = []
    for fields in yaml.safe_load(file.read_bytes())["automations"]:
        actions = [
            action | {"block_document_id": block} if action["type"] == "send-notification" else action
            for action in fields["actions"]
        ]
        automation = AutomationCore.model_validate(fields | {"actions": actions})
        if existing := client.read_automations_by_name(automation.name):
            client.update_automation(existing[0].id, automation.model_copy(update={"enabled": existing[0].enabled}))
        else:
            client.create_automation(automation)
        print(f"{automation.name}: {'updated' if existing else 'created'}")
        names.append(automation.name)
    return names


def warn_of_slow_heartbeats(client: SyncPrefectClient) -> None:
    """Name the deployments of the flow whose job variables do not make their runs send heartbeats often enough."""
    flow = FlowFilter.model_validate({"name": {"any_": [FLOW]}})
    for deployment in client.read_deployments(flow_filter=flow):
        seconds = deployment.job_variables.get("env", {}).get(HEARTBEAT, PREFECTS_SECONDS)
        if int(seconds) > MAX_SECONDS:
            print(
                f"{FLOW}/{deployment.name}: its job variables do not set {HEARTBEAT} to {MAX_SECONDS}. {LOST} takes "
                "its healthy runs for lost, unless its Prefect worker sets this variable: call `prefect deploy` again"
            )


if __name__ == "__main__":
    main()
