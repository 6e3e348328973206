"""Systems Manager as far as a look inside a server needs it: agents that come online, and commands that really run."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.ssm.exceptions import SSMException
from moto.ssm.responses import SimpleSystemManagerResponse

from simcloud.ec2 import SimInstance, ec2

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

AT_ONCE = 50  # ids that one SendCommand takes
LIST_CUTS, GET_CUTS = 2500, 24000  # characters of output


@dataclass
class Command:
    """What was sent, and what each instance said to it: status and output."""

    id: str
    ids: list[str]
    said: dict[str, tuple[str, str]] = field(default_factory=dict)


class CorrectedSSM(SimpleSystemManagerResponse):
    cloud: SimCloud

    def describe_instance_information(self) -> ActionResult:
        wanted = [
            value for told in self._get_param("Filters", []) if told["Key"] == "InstanceIds" for value in told["Values"]
        ]
        found = [
            {
                "InstanceId": each.id,
                "PingStatus": "Online" if self._online(each) else "ConnectionLost",
                "LastPingDateTime": utcnow().timestamp(),
                "PlatformType": "Linux",
                "AgentVersion": "3.3.0.0",
                "ResourceType": "EC2Instance",
                "IPAddress": each.private_ip,
            }
            for each in ec2(self.current_account, self.region).all_instances()
            if (not wanted or each.id in wanted) and self._registered(each)
        ]
        start = int(self._get_param("NextToken") or 0)
        end = start + min(int(self._get_param("MaxResults") or AT_ONCE), self.cloud.page)
        more = {"NextToken": str(end)} if end < len(found) else {}
        return ActionResult({"InstanceInformationList": found[start:end], **more})

    def _registered(self, instance: Any) -> bool:
        if not isinstance(instance, SimInstance) or self.cloud.machines is None:
            return False
        return instance.state in ("running", "stopping", "stopped") and self.cloud.visible(instance.id)

    def _online(self, instance: Any) -> bool:
        machines = self.cloud.machines
        if instance.state != "running" or machines is None or instance.id not in machines.running():
            return False
        ready: float = instance._state.at + self.cloud.timings.agent
        return self.cloud.now() >= ready

    def send_command(self) -> ActionResult:
        ids = list(self._get_param("InstanceIds", []))
        if len(ids) > AT_ONCE:
            raise SSMException("ValidationException", f"at most {AT_ONCE} instance ids may be given")
        if self._get_param("DocumentName") != "AWS-RunShellScript":
            raise SSMException("InvalidDocument", "only AWS-RunShellScript is known here")
        there = {each.id: each for each in ec2(self.current_account, self.region).all_instances()}
        if any(id not in there or not self._online(there[id]) for id in ids):
            raise SSMException("InvalidInstanceId", "Instances not in a valid state for account")
        told = self._get_param("Parameters", {})
        command = Command(id=str(uuid.uuid4()), ids=ids)
        self.cloud.ledgers.commands[command.id] = command
        lines, limit = told["commands"], float(told.get("executionTimeout", ["3600"])[0])
        for id in ids:  # each instance runs it for itself
            threading.Thread(target=self._run, args=(command, id, "\n".join(lines), limit), daemon=True).start()
        return ActionResult({"Command": {"CommandId": command.id, "Status": "Pending", "InstanceIds": ids}})

    def _run(self, command: Command, id: str, script: str, seconds: float) -> None:
        machines = self.cloud.machines
        assert machines is not None
        with suppress(KeyError):  # it was terminated meanwhile
            well, output = machines.run(id, script, seconds=seconds)
            command.said[id] = ("Success" if well else "Failed", output)

    def list_command_invocations(self) -> ActionResult:
        command = self._command()
        found = [self._told(command, id) for id in command.ids]
        start = int(self._get_param("NextToken") or 0)
        end = start + min(int(self._get_param("MaxResults") or AT_ONCE), self.cloud.page)
        more = {"NextToken": str(end)} if end < len(found) else {}
        return ActionResult({"CommandInvocations": found[start:end], **more})

    def _told(self, command: Command, id: str) -> dict[str, Any]:
        status, output = command.said.get(id, ("InProgress", ""))
        cut = output if len(output) <= LIST_CUTS else output[: LIST_CUTS - 23] + "\n---Output truncated---"
        plugin = {"Name": "aws:runShellScript", "Status": status, "Output": cut}
        plugins = [plugin] if self._get_param("Details", False) else []
        return {"CommandId": command.id, "InstanceId": id, "Status": status, "CommandPlugins": plugins}

    def get_command_invocation(self) -> ActionResult:
        command, id = self._command(), self._get_param("InstanceId")
        if id not in command.ids:
            raise SSMException("InvocationDoesNotExist", "")
        status, output = command.said.get(id, ("InProgress", ""))
        whole = {"CommandId": command.id, "InstanceId": id, "Status": status, "StandardErrorContent": ""}
        return ActionResult({**whole, "StandardOutputContent": output[:GET_CUTS]})

    def _command(self) -> Command:
        found: Command | None = self.cloud.ledgers.commands.get(self._get_param("CommandId"))
        if found is None:
            raise SSMException("InvocationDoesNotExist", "")
        return found
