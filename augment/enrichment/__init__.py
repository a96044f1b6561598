"""The loop: items to requests, requests to judged texts in the store; every item accounted for."""
