"""What mediahost-vpn-port.service runs on a host: keeps the forwarded port, and tells the wall and qBittorrent."""
