"""kombu's own `azureservicebus`, made to reach an emulator: by itself it speaks to *.servicebus.windows.net alone."""

from __future__ import annotations

from azure.core.pipeline.transport import RequestsTransport
from azure.servicebus.management import ServiceBusAdministrationClient
from kombu.transport import TRANSPORT_ALIASES, azureservicebus
from kombu.utils.objects import cached_property

__all__ = ["StockTransport"]


class _PlainHttp(RequestsTransport):
    def send(self, request, **kwargs):
        request.url = request.url.replace("https://", "http://", 1)
        return super().send(request, **kwargs)


class _Channel(azureservicebus.Channel):
    def _try_parse_connection_string(self):
        self._connection_string = self.transport_options["connection_string"]
        self._namespace = self._credential = ""

    @cached_property
    def queue_mgmt_service(self):
        return ServiceBusAdministrationClient.from_connection_string(self._connection_string, transport=_PlainHttp())


class StockTransport(azureservicebus.Transport):
    Channel = _Channel


TRANSPORT_ALIASES["stockasb"] = f"{__name__}:StockTransport"
