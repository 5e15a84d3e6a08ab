"""A Jupyter server that answers a slider at once; `tinydiff lessons` starts it.

By hand: `jupyter lab --ServerApp.kernel_websocket_connection_class=tinydiff.server.Prompt`.
"""

from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class Prompt(ZMQChannelsWebsocketConnection):
    """A connection whose small messages do not wait for the acknowledgement of the one before.

    Jupyter leaves Nagle's algorithm on, which together with the browser's delayed acknowledgements keeps a picture back
    for some 30 ms.
    """

    def connect(self) -> Any:
        """Open the connection, with TCP_NODELAY."""
        self.websocket_handler.set_nodelay(True)
        return super().connect()
