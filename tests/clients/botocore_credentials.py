"""What PyPI's botocore finds where it looks for an EC2 instance's credentials, and what the service
answers to who has no token: a line of JSON."""

import json
import urllib.error
import urllib.request

import botocore.session

try:
    plain = urllib.request.urlopen("http://169.254.169.254/latest/meta-data/").status
except urllib.error.HTTPError as error:
    plain = error.code
found = botocore.session.Session().get_credentials()
print(json.dumps({"without a token": plain, "method": found and found.method,
                  "credentials": found and [found.access_key, found.secret_key, found.token]}))
