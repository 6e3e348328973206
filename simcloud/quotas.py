"""Service Quotas, as far as EC2's processors go: what is told is what RunInstances holds to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from moto.servicequotas.exceptions import NoSuchResource
from moto.servicequotas.responses import ServiceQuotasResponse

if TYPE_CHECKING:
    from simcloud.cloud import SimCloud

STANDARD = "L-1216C47A"  # Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances
DEFAULT = 5000  # vCPUs, for an account that nobody has set


class CorrectedQuotas(ServiceQuotasResponse):
    """moto knows quotas of VPCs alone."""

    cloud: SimCloud

    def get_service_quota(self) -> str:
        """Of one that was never changed AWS may know the default alone."""
        quota = self.cloud.ledgers.vcpus.get((self.current_account, self.region))
        if quota is None:
            raise NoSuchResource()
        return self._told(quota)

    def get_aws_default_service_quota(self) -> str:
        return self._told(DEFAULT)

    def _told(self, value: int) -> str:
        if (self._get_param("ServiceCode"), self._get_param("QuotaCode")) != ("ec2", STANDARD):
            raise NoSuchResource()
        quota = {
            "ServiceCode": "ec2",
            "QuotaCode": STANDARD,
            "QuotaName": "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
            "Value": float(value),
            "Unit": "None",
            "Adjustable": True,
            "GlobalQuota": False,
        }
        return json.dumps({"Quota": quota})
