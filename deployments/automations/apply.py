"""Create the automations of alerts.yaml on the server of PREFECT_API_URL, or update those that exist.

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
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

WEBHOOK = "dreamgrid-alerts"
"""Name of the notification block that is created for a webhook."""


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
            apply(client, arguments.file, notification_block(client, arguments.target))
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


def apply(client: SyncPrefectClient, file: Path, block: UUID) -> None:
    """Create or update each automation by its name. An automation that was switched off stays off."""
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


if __name__ == "__main__":
    main()
