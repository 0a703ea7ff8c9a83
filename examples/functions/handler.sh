# A function, for functions.py: its request comes on standard input, its answer goes to standard
# output. Each call is the first and last of its microVM, whose name, random numbers and disk are its
# own: the answer shows all three.
random=$(od -A n -N 8 -t x8 /dev/urandom)
request=$(cat)
[ -n "$request" ] || exit # only asked whether we are here
hostname "$(wget -q -O - http://169.254.169.254/name)"
echo "$request" >>/root/requests
sync
echo "$(hostname)$random $(wc -l </root/requests) $(tail -n 1 /root/requests | tr a-z A-Z)"
